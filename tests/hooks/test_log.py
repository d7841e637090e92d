"""gpuwatch.log and its relatives, through a real control thread to a small real daemon."""

import io
import os
import struct
import subprocess
import sys
import time

import matplotlib as mpl
import numpy as np
import pytest
import torch
from gpuwatch_hooks import log, log_figure, log_histogram, log_images, log_text, logging_session, outbox, session, snapshot
from PIL import Image
from torch import nn

from tests.hooks.daemon_peer import wait_for

mpl.use("Agg")
api = sys.modules["gpuwatch_hooks.log"]


@pytest.fixture
def daemon(make_daemon, make_session, monkeypatch, said):
    """A daemon with a recording session, which is the process's current one."""
    peer = make_daemon()
    current = make_session()
    monkeypatch.setattr(session, "_current", current)
    monkeypatch.setattr(api, "_complained", set())
    assert current.arm()
    return peer


def row(daemon, tag):
    return wait_for(lambda: [row for row in daemon.scalars() if row[0] == tag], what=f"scalar {tag}")[0]


def medium(daemon, tag):
    """(message, data) of the medium with this tag."""
    message = wait_for(lambda: [m for m in daemon.of("media") if m["tag"] == tag], what=f"medium {tag}")[0]
    data, seals = daemon.media[message["n"]]
    assert seals & 0b110  # SHRINK and GROW: the daemon may map it
    assert len(data) == message["bytes"]
    return message, data


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.91, 0.91),
        (3, 3.0),
        (True, 1.0),
        (np.float32(0.25), 0.25),
        (np.array([2.5]), 2.5),
        (torch.tensor(1.5), 1.5),
        (torch.tensor([[2]], dtype=torch.int64), 2.0),
        (torch.tensor(0.5, requires_grad=True) * 3, 1.5),
        (torch.tensor(1.0, dtype=torch.bfloat16), 1.0),
        (float("inf"), float("inf")),
    ],
)
def test_any_one_number_is_a_scalar(daemon, value, expected):
    log("Accuracy/val", value, 7)
    tag, step, got, _ = row(daemon, "Accuracy/val")
    assert (tag, step, got) == ("Accuracy/val", 7, expected)


def test_nan_arrives_as_nan(daemon):
    log("x", float("nan"), 0)
    assert row(daemon, "x")[2] != row(daemon, "x")[2]


def test_a_value_that_is_read_late_and_fails_stops_no_other(daemon):
    class Lost:
        def synchronize(self):
            raise RuntimeError("CUDA error: device-side assert triggered")

    session.current().scalar("lost", 1, snapshot.Snapshot(torch.zeros(1), Lost()))
    log("kept", 2.0, 1)
    assert row(daemon, "kept")[2] == 2.0
    assert row(daemon, "lost")[2] != row(daemon, "lost")[2]


def test_without_a_step_the_present_optimizer_step_is_taken(daemon):
    current = session.current()
    current.install()
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(5):
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()
    log("after", 1.0)
    assert row(daemon, "after")[1] == 5


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (lambda: log("x", "0.9", 1), "a number is needed"),
        (lambda: log("x", None, 1), "float"),
        (lambda: log("x", torch.zeros(2), 1), "not one number"),
        (lambda: log("x", 1.0, "soon"), "invalid literal"),
        (lambda: log("x", 1.0, -1), "not a step"),
        (lambda: log("x"), "missing"),
        (lambda: log_histogram("x", "values", 1), "str"),
        (lambda: log_images("x", torch.zeros(2, 5, 6, 7), 1), "no batch of images"),
        (lambda: log_images("x", torch.zeros(0, 3, 4, 4), 1), "empty"),
        (lambda: log_figure("x", 3, 1), "savefig"),
        (lambda: log_text("x", 3, 1), "text is a str"),
        (lambda: log_text("x", "m" * (1 << 21), 1), "are taken"),
    ],
)
def test_a_bad_argument_is_told_once_and_left_out(daemon, said, call, reason):
    for _ in range(3):
        call()
    (line,) = said
    assert reason in line
    assert "is left out" in line
    log("good", 1.0, 1)
    assert row(daemon, "good")
    assert [r for r in daemon.scalars() if r[0] != "good"] == []
    assert daemon.of("media") == []


def test_interrupts_pass(daemon):
    class Impatient:
        def __float__(self):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        log("x", Impatient(), 1)


def test_histogram_of_what_the_tensor_was(daemon):
    torch.manual_seed(3)
    tensor = torch.randn(50, 40)
    values = tensor.double().numpy().copy()
    log_histogram("weights", tensor, 4)
    tensor.zero_()  # training goes on at once
    message, data = medium(daemon, "weights")
    assert (message["kind"], message["step"], message["shape"]) == ("histogram", 4, [64, 3])
    rows = np.array(struct.unpack("<192d", data)).reshape(64, 3)
    assert rows[:, 2].sum() == 2000
    assert rows[0, 0] == values.min()
    assert rows[-1, 1] == pytest.approx(values.max(), rel=1e-12)


def test_a_large_histogram_is_binned_at_once_and_keeps_no_copy(daemon, monkeypatch):
    monkeypatch.setattr(api, "MAX_COPIED_BYTES", 100)
    copied = []
    take = snapshot.take
    monkeypatch.setattr(snapshot, "take", lambda tensor: copied.append(tensor.numel()) or take(tensor))
    log_histogram("large", torch.arange(1000.0), 1)
    _, data = medium(daemon, "large")
    assert sum(struct.unpack("<192d", data)[2::3]) == 1000
    assert copied == [130]


def test_nonfinite_entries_of_a_histogram_are_told_as_a_scalar(daemon):
    log_histogram("g", torch.tensor([1.0, float("nan"), float("inf"), 2.0]), 9)
    assert row(daemon, "g/nonfinite_count")[1:3] == [9, 2.0]
    _, data = medium(daemon, "g")
    assert sum(struct.unpack("<192d", data)[2::3]) == 2


def test_images_arrive_as_pixels(daemon):
    batch = torch.rand(12, 3, 5, 6)
    log_images("inputs", batch, 2)
    expected = (batch[:8].permute(0, 2, 3, 1) * 255).clamp(0, 255).to(torch.uint8)
    batch.zero_()
    message, data = medium(daemon, "inputs")
    assert (message["kind"], message["shape"]) == ("images", [8, 5, 6, 3])
    assert data == expected.contiguous().numpy().tobytes()


def test_normalised_images_and_arrays(daemon):
    log_images("stretched", np.array([[[-3.0, 1.0], [0.0, 3.0]]]), 2, rescale=True, dataformats="NHW")
    message, data = medium(daemon, "stretched")
    assert message["shape"] == [1, 2, 2, 1]
    assert list(data) == [0, 170, 127, 255]


def test_figures_are_drawn_now_and_closed(daemon):
    from matplotlib import pyplot as plt

    figure, kept = plt.figure(figsize=(2, 1), dpi=50), plt.figure(figsize=(2, 1), dpi=50)
    log_figure("curve", figure, 3)
    log_figure("kept", kept, 3, close=False)
    _, data = medium(daemon, "curve")
    assert Image.open(io.BytesIO(data)).size == (100, 50)
    assert not plt.fignum_exists(figure.number)
    assert plt.fignum_exists(kept.number)
    plt.close(kept)


def test_text_is_markdown_in_utf8(daemon):
    log_text("notes", "# Größe\n\n| a | b |", 1)
    message, data = medium(daemon, "notes")
    assert (message["kind"], data.decode()) == ("text", "# Größe\n\n| a | b |")


def test_media_are_bounded_in_count_and_bytes_and_what_is_lost_is_counted(make_session, monkeypatch):
    current = make_session()
    monkeypatch.setattr(session, "_current", current)  # nobody takes anything: the session has no thread yet
    for index in range(outbox.MAX_WAITING_MEDIA + 5):
        log_images(f"small{index}", torch.rand(1, 1, 2, 2), 1)
    assert len(current.outbox._media) == outbox.MAX_WAITING_MEDIA
    current.outbox._media.clear()
    seven = torch.zeros(7, 3, 724, 724)  # 42 MiB of float32: one fits into 64 MiB, two do not
    log_images("one", seven, 1)
    log_images("two", seven, 1)
    assert [item[1] for item in current.outbox._media] == ["one"]
    current.outbox.collect()
    assert current.outbox.dropped["media_waiting"] == 6


def test_after_the_end_and_in_workers_nothing_happens(daemon):
    session.current().detach()
    before = len(daemon.messages)
    log("x", 1.0, 1)
    log_images("x", torch.rand(1, 3, 2, 2), 1)
    log_histogram("x", torch.rand(3), 1)
    log_text("x", "x", 1)
    assert session.current().outbox.is_idle()
    assert len(daemon.messages) == before


class Logging(torch.utils.data.Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        log("worker", 1.0, index)
        current = session.current()
        return int(current.armed or not current.outbox.is_idle())


def test_dataloader_workers_record_nothing(make_session, monkeypatch):
    monkeypatch.setattr(session, "_current", make_session())  # not armed: a fork of it is as free as it is
    marks = list(torch.utils.data.DataLoader(Logging(), num_workers=1, batch_size=None))
    assert marks == [0, 0, 0, 0]
    assert Logging()[0] == 1  # the twin: outside a worker the same call leaves something to send


def test_a_process_that_logs_and_trains_begins_at_its_first_step(make_daemon, make_session, monkeypatch):
    peer = make_daemon()
    current = make_session()
    monkeypatch.setattr(session, "_current", current)
    log_text("settings", "lr = 0.1", 0)
    assert not current.armed  # a fork between here and the first step may become a rank
    current.install()
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    assert current.armed
    medium(peer, "settings")


def test_a_process_that_only_logs_begins_after_its_patience(make_daemon, make_session, monkeypatch):
    peer = make_daemon()
    current = make_session()
    monkeypatch.setattr(session, "_current", current)
    monkeypatch.setattr(logging_session, "PATIENCE_SECONDS", 0.0)
    log("Accuracy/test", 0.5, 1)
    time.sleep(0.01)
    log("Accuracy/test", 0.6, 2)
    assert current.armed
    wait_for(lambda: len(peer.scalars()) == 2)


def script(text, *arguments, **environment):
    environment = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(
        [sys.executable, "-c", text, *arguments], capture_output=True, text=True, timeout=60, check=False, env=environment
    )


def test_a_short_evaluation_delivers_at_its_exit(make_daemon, socket_path):
    peer = make_daemon()
    run = script("import gpuwatch\ngpuwatch.log('Accuracy/test', 0.93, 12)", GPUWATCH_SOCKET=str(socket_path))
    assert (run.returncode, run.stderr) == (0, "")
    assert row(peer, "Accuracy/test")[:3] == ["Accuracy/test", 12, 0.93]
    wait_for(lambda: peer.of("bye"))


FORKED_RANK = """
import os, sys, gpuwatch, torch
from torch import nn
gpuwatch.watch(nn.Linear(1, 1))
gpuwatch.log_text("settings", "lr = 0.1", 0)
child = os.fork()
if child == 0:
    gpuwatch.log("child", 1.0, 1)
    if "trains" in sys.argv:
        model = nn.Linear(2, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()
    sys.exit()
assert os.waitpid(child, 0)[1] == 0
"""


@pytest.mark.parametrize("child", ["trains", "does not"])
def test_a_forked_child_sends_nothing_of_its_parents(make_daemon, socket_path, child):
    peer = make_daemon()
    run = script(FORKED_RANK, child, GPUWATCH_SOCKET=str(socket_path))
    assert (run.returncode, run.stderr) == (0, "")
    assert [message["tag"] for message in peer.of("media")] == ["settings"]
    assert [tag for tag, *_ in peer.scalars()] == (["child"] if child == "trains" else [])
    assert len(peer.hellos) == (2 if child == "trains" else 1)


def test_importing_gpuwatch_imports_no_torch():
    run = script("import sys, gpuwatch, gpuwatch_hooks\ngpuwatch.log('x', 1, 1)\nassert 'torch' not in sys.modules")
    assert (run.returncode, run.stdout) == (0, "")


def test_without_a_daemon_nothing_happens_and_nothing_is_raised(tmp_path):
    text = """
import gpuwatch, torch
gpuwatch.log("a", 1.0, 1); gpuwatch.log_text("b", "c", 1); gpuwatch.log_images("d", torch.rand(1, 3, 4, 4), 1)
print("trained")
"""
    run = script(text, GPUWATCH_SOCKET=str(tmp_path / "nobody.sock"))
    assert (run.returncode, run.stdout) == (0, "trained\n")
    assert run.stderr.startswith("gpuwatch: no daemon answers")
    assert run.stderr.count("\n") == 1


def test_a_compiled_function_may_log(daemon):
    @torch.compile(backend="eager")
    def step(x):
        y = x.sin()
        log("inside", y.sum(), 1)
        return y.cos()

    x = torch.arange(3.0)
    assert torch.equal(step(x), x.sin().cos())
    assert row(daemon, "inside")[2] == pytest.approx(x.sin().sum().item())
