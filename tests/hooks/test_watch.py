"""`watch`: the hooks by hand, names for layers, and a way out."""

import os
import re
import subprocess
import sys

import pytest
import torch
from gpuwatch_hooks import session, watch
from torch import nn

from tests.hooks.daemon_peer import wait_for

api = sys.modules["gpuwatch_hooks.watch"]


@pytest.fixture
def clean(make_session, monkeypatch, said):
    """No session yet: watch begins one, as in a process of its own."""
    monkeypatch.setattr(session, "_current", None)
    monkeypatch.setattr(api, "_open", [])
    yield
    if session._current is not None:
        session._current.detach()


def train(model, optimizer, steps=3):
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.ones(4, 3)).square().mean().backward()
        optimizer.step()


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(3, 5)
        self.head = nn.Linear(5, 3, bias=False)
        self.tied = nn.Linear(5, 3, bias=False)
        self.tied.weight = self.head.weight

    def forward(self, x):
        return self.head(torch.relu(self.stem(x)))


def tensor_names(daemon):
    """Names of the last complete tensor table."""
    tables = [message for message in daemon.of("names") if message["table"] == "tensor"]
    return tables[-1]["names"] if tables else None


def test_watch_records_without_gpuwatch_run(make_daemon, clean):
    daemon = make_daemon()
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watch(model, optimizer, name="by hand") as watcher:
        assert watcher.recording
        train(model, optimizer)
        assert session.current().step == 3
        wait_for(lambda: tensor_names(daemon))
    assert not watcher.recording
    assert daemon.hellos[0]["run"] == "by hand"
    assert tensor_names(daemon) == ["stem.weight", "stem.bias", "head.weight=tied.weight"]
    wait_for(lambda: daemon.of("bye"))


@pytest.mark.parametrize(
    "wrap", [torch.nn.DataParallel, lambda model: torch.compile(model, backend="eager")], ids=["dp", "compile"]
)
def test_names_lose_what_wrappers_put_in_front(make_daemon, clean, wrap):
    daemon = make_daemon()
    hidden = [[[wrap(Net())]]]  # no frame walk finds it there: the names are watch's
    optimizer = torch.optim.SGD(hidden[0][0][0].parameters(), lr=0.1)
    with watch(hidden[0][0][0], optimizer):
        train(hidden[0][0][0], optimizer)
        wait_for(lambda: tensor_names(daemon))
    assert tensor_names(daemon) == ["stem.weight", "stem.bias", "head.weight=tied.weight"]


def test_the_watched_optimizers_loss_stands_for_the_run(make_daemon, clean):
    make_daemon()
    first, second = Net(), Net()
    optimizers = [torch.optim.SGD(net.parameters(), lr=0.1) for net in (first, second)]
    with watch(second, optimizers[1]):
        train(first, optimizers[0], 1)
        train(second, optimizers[1], 1)
        roster = session.current().recorder.roster
        assert roster.find(optimizers[1]).index == 0
        assert roster.find(optimizers[0]).index == 1


def test_close_takes_everything_out(make_daemon, clean):
    make_daemon()
    table = sys.modules["torch.optim.optimizer"]._global_optimizer_post_hooks
    backward, hooks = torch.autograd.backward, dict(table)
    model = Net()
    watcher = watch(model)
    assert torch.autograd.backward is not backward
    watcher.close()
    watcher.close()
    assert torch.autograd.backward is backward
    assert dict(table) == hooks
    train(model, torch.optim.SGD(model.parameters(), lr=0.1))


def test_watch_again_after_close_is_a_new_recording(make_daemon, clean):
    daemon = make_daemon()
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        with watch(model, optimizer):
            train(model, optimizer)
    wait_for(lambda: len(daemon.hellos) == 2)
    assert len({hello["attempt_id"] for hello in daemon.hellos}) == 2


def test_the_last_of_several_watches_ends_the_recording(make_daemon, clean):
    make_daemon()
    first, second = watch(Net()), watch(Net())
    first.close()
    assert second.recording
    second.close()
    assert session.current().over


def test_close_leaves_what_gpuwatch_run_has_begun(make_daemon, clean, monkeypatch):
    make_daemon()
    monkeypatch.setenv("GPUWATCH_RUN", "named")
    monkeypatch.setenv("GPUWATCH_HOOKS_EVERY", "7")
    session.current().install()  # as injection does
    with watch(Net(), every=3, histograms=False, name="mine"):
        current = session.current()
        assert (current.run, current.settings.every, current.settings.histograms) == ("named", 7, False)
    assert not current.over
    assert current.installed


def test_settings_reach_the_session_and_a_daemons_defaults_do_not_replace_them(make_daemon, clean):
    make_daemon(welcome={"settings": {"every": 50, "histograms": True}})
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watch(model, optimizer, every=4, histograms=False):
        train(model, optimizer)
        wait_for(lambda: session.current().control.welcomes)
        assert (session.current().settings.every, session.current().settings.histograms) == (4, False)


def test_a_scalers_settings_are_facts(make_daemon, clean):
    daemon = make_daemon()
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watch(model, optimizer, torch.amp.GradScaler("cpu", growth_interval=123)):
        train(model, optimizer)
        wait_for(lambda: daemon.of("meta"))
    facts = {key: value for message in daemon.of("meta") for key, value in message["facts"].items()}
    assert facts["loss_scaler"] == "GradScaler"
    assert facts["loss_scaler_growth_interval"] == 123


def test_wrong_arguments_are_told_once_each_and_training_is_recorded_all_the_same(make_daemon, clean, said):
    daemon = make_daemon()
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        watch("model", optimizer="sgd", scaler=3, name=7, every=0, histograms="yes")
    assert len(said) == 5
    assert all("is left out" in line or "are left out" in line for line in said)
    train(model, optimizer)
    wait_for(lambda: daemon.hellos)


def test_exceptions_pass_through_the_context(make_daemon, clean):
    make_daemon()
    with pytest.raises(KeyError, match="lost"), watch(Net()):
        raise KeyError("lost")
    assert session.current().over


SCRIPT = """
import os, sys, torch, gpuwatch
from torch import nn
torch.manual_seed(0)
model = nn.Linear(3, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
if "watch" in sys.argv:
    gpuwatch.watch(model, optimizer)
for step in range(30):
    loss = model(torch.randn(8, 3)).square().mean()
    optimizer.zero_grad(); loss.backward(); optimizer.step()
    if step == 10 and "fork" in sys.argv:
        child = os.fork()
        if child == 0:
            with gpuwatch.watch(model, optimizer) as w:
                gpuwatch.log("child", 1.0, 1)
                model(torch.randn(8, 3)).sum().backward(); optimizer.step()
                os._exit(17 if w.recording else 0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
print(repr(loss.item()))
"""


def run(socket_path, *arguments):
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": "/nonexistent",
        "OMP_NUM_THREADS": "1",
        "GPUWATCH_SOCKET": str(socket_path),
    }
    command = [sys.executable, "-c", SCRIPT, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environment)


def test_without_a_daemon_there_is_one_line_and_the_same_loss(socket_path):
    bare, watched = run(socket_path), run(socket_path, "watch")
    assert (watched.returncode, watched.stdout) == (0, bare.stdout)
    assert watched.stderr.startswith("gpuwatch: no daemon answers")
    assert watched.stderr.count("\n") == 1
    assert bare.stderr == ""


def test_a_forked_child_records_nothing(make_daemon, socket_path):
    daemon = make_daemon()
    watched = run(socket_path, "watch", "fork")
    assert watched.returncode == 0
    assert re.fullmatch(r"gpuwatch: process \d+ was forked from one that is recorded, .*\n", watched.stderr), (
        "once, and no more"
    )
    assert len(daemon.hellos) == 1
    assert daemon.scalars() == []
    wait_for(lambda: daemon.of("bye"))
