"""Stock TensorBoard reads everything: the default loader, --load_fast=false, EventAccumulator and tbparse."""

import itertools
import json
import os
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request

import msgspec
import pytest
from PIL import Image

from gpuwatch.config import Config, TensorBoard
from gpuwatch.exporters.eventfile import EventFile
from gpuwatch.exporters.run_export import RunExport
from gpuwatch.state.findings import Finding
from gpuwatch.state.store import State
from tests.exporters.job import LAYERS, Job, step_values
from tests.exporters.test_run_export import crash

CONFIG = Config(tensorboard=TensorBoard(layers_every_seconds=1.0, histograms_every_seconds=2.0))
LAST = 60
#: All points. 0, which the help text gives for "all", makes TensorBoard 2.21 answer with none at all.
SAMPLES = ",".join(f"{plugin}=1000000" for plugin in ("scalars", "images", "text", "histograms"))


def export(job, *, crashed=False, now_ns=0):
    exporter = RunExport(CONFIG, os.open(job.run.path, os.O_RDONLY | os.O_DIRECTORY))
    while exporter.turn(now_ns):
        pass
    if job.run.status != "live":
        exporter.finish(job.run.end_reason, now_ns)
    crash(exporter) if crashed else exporter.close()


def record(logdir):
    """Two ranks, three daemons: the first is killed in the middle of a write, the second stopped, the third ends the run."""
    state = State(str(logdir))
    jobs = [Job(state, "digits", rank=rank, world_size=2) for rank in range(2)]
    for first, crashed in ((1, True), (21, False), (41, False)):
        for job in jobs:
            for step in range(first, first + 20):
                job.step(step)
                if step % 10 == 0:
                    job.scalar("Accuracy/val", step // 10, step / 64)
            if first == 21:
                job.media("images", "train_samples", 30, (8, 8, 8, 1), bytes(range(256)) * 2)
                job.media("text", "notes", 30, (), b"| a | b |\n|---|---|\n| 1 | 2 |\n")
                words = {"statistic": "entries", "value": 3.0, "threshold": 0.0, "summary": "s.", "action": "a.", "time": 1.7e9}
                state.find(job.run, Finding("nonfinite_gradient", "critical", 30, 30, 30, layer="fc.weight", **words))
                state.tick()
            if first == 41:
                job.end(LAST)
            export(job, crashed=crashed)
            if crashed:
                name = max(name for name in os.listdir(job.run.path) if "tfevents" in name)
                path = os.path.join(job.run.path, name)
                os.truncate(path, os.stat(path).st_size - 7)  # in the middle of the last record
    return jobs


@pytest.fixture(scope="module")
def logdir(tmp_path_factory):
    logdir = tmp_path_factory.mktemp("board")
    record(logdir)
    return logdir


class Board:
    def __init__(self, logdir, *options):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        command = [
            sys.executable,
            "-m",
            "tensorboard.main",
            "--logdir",
            str(logdir),
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
        ]
        command += ["--samples_per_plugin", SAMPLES, "--reload_interval", "1", *options]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def get(self, path, **query):
        with urllib.request.urlopen(f"{self.url}/data/{path}?{urllib.parse.urlencode(query)}", timeout=30) as response:
            return json.loads(response.read())

    def wait(self, condition, seconds=60):
        deadline = time.monotonic() + seconds
        while True:
            try:
                found = condition(self)
            except OSError:
                found = None
            if found:
                return found
            assert time.monotonic() < deadline
            time.sleep(0.1)

    def scalars(self, run, tag):
        return [(step, value) for _, step, value in self.get("plugin/scalars/scalars", run=run, tag=tag)]

    def close(self):
        self.process.terminate()
        self.process.wait(20)


@pytest.fixture(scope="module", params=["--load_fast=true", "--load_fast=false"])
def board(request, logdir):
    board = Board(logdir, request.param)
    try:
        complete = lambda b: len(b.scalars("digits/rank1", "train/loss")) == LAST  # noqa: E731
        board.wait(lambda b: set(b.get("plugin/scalars/tags")) == {"digits/rank0", "digits/rank1"})
        board.wait(complete)
        yield board
    finally:
        board.close()


@pytest.mark.parametrize("run", ["digits/rank0", "digits/rank1"])
def test_every_step_of_every_scalar(board, run):
    steps = list(range(1, LAST + 1))
    for field, tag in {"loss": "train/loss", "grad_norm": "grad/norm", "loss_scale": "amp/loss_scale"}.items():
        assert board.scalars(run, tag) == [(step, step_values(step)[field]) for step in steps]
    assert board.scalars(run, "Accuracy/val") == [(i, i * 10 / 64) for i in range(1, 7)]
    for tag in board.get("plugin/scalars/tags")[run]:
        found = [step for step, _ in board.scalars(run, tag)]
        assert found == sorted(set(found))
        if tag.split("/")[0] in ("train", "phase", "amp"):
            assert found == steps, tag


def test_layers(board):
    tags = board.get("plugin/scalars/tags")["digits/rank0"]
    for layer in LAYERS:
        assert {f"grad/{layer}/{last}" for last in ("norm", "absmax", "mean", "zero_ratio")} <= set(tags)
        assert [step for step, _ in board.scalars("digits/rank0", f"grad/{layer}/norm")][:2] == [1, 11]


def test_histograms(board):
    tags = board.get("plugin/histograms/tags")["digits/rank0"]
    assert set(tags) == {f"{kind}/{layer}" for kind in ("grad", "weight") for layer in LAYERS}
    assert "log2" in tags["grad/fc.weight"]["description"]
    points = board.get("plugin/histograms/histograms", run="digits/rank0", tag="grad/fc.weight")
    assert [step for _, step, _ in points] == [1, 21, 41]
    for _, _, buckets in points:
        assert all(left < right and count >= 0 for left, right, count in buckets)
        assert all(right == after[0] for (_, right, _), after in itertools.pairwise(buckets))
        assert -48 <= buckets[0][0] < buckets[-1][1] <= 16


def test_images(board):
    tags = board.get("plugin/images/tags")["digits/rank0"]
    assert set(tags) == {"train_samples"}
    (found,) = board.get("plugin/images/images", run="digits/rank0", tag="train_samples", sample=0)
    assert found["step"] == 30
    with urllib.request.urlopen(f"{board.url}/data/plugin/images/individualImage?{found['query']}", timeout=30) as response:
        assert Image.open(response).size == (26, 26)


def test_text(board):
    assert set(board.get("plugin/text/tags")["digits/rank0"]) == {"notes", "finding/nonfinite_gradient/fc.weight"}
    (found,) = board.get("plugin/text/text", run="digits/rank0", tag="notes")
    assert "<table>" in found["text"]
    (found,) = board.get("plugin/text/text", run="digits/rank0", tag="finding/nonfinite_gradient/fc.weight")
    assert "<strong>What to do:</strong>" in found["text"]


def test_custom_scalars(board):
    layout = board.get("plugin/custom_scalars/layout")
    assert [category["title"] for category in layout["category"]] == [
        "Training",
        "Gradients",
        "Mixed precision",
        "Speed",
        "GPU",
    ]
    assert len(layout["category"][0]["chart"]) == 4  # both ranks carry the layout: equal charts are merged
    pattern = layout["category"][1]["chart"][1]["multiline"]["tag"][0]
    found = board.get("plugin/custom_scalars/scalars", run="digits/rank0", tag=pattern)
    assert set(found["tag_to_events"]) == {f"grad/{layer}/norm" for layer in LAYERS}
    logged = layout["category"][0]["chart"][1]["multiline"]["tag"][0]
    assert board.get("plugin/custom_scalars/scalars", run="digits/rank0", tag=logged)["tag_to_events"] == {}
    accuracy = layout["category"][0]["chart"][2]["multiline"]["tag"][0]
    assert set(board.get("plugin/custom_scalars/scalars", run="digits/rank0", tag=accuracy)["tag_to_events"]) == {
        "Accuracy/val"
    }


def hparams(board, path, **body):
    request = urllib.request.Request(
        f"{board.url}/data/plugin/hparams/{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=30) as response:
        return json.loads(response.read())


def test_hyperparameters_with_the_final_metrics(board):
    experiment = hparams(board, "experiment", experimentName="")
    assert [info["name"]["tag"] for info in experiment["metricInfos"]] == ["train/loss", "Accuracy/val"]
    names = {info["name"]: info["type"] for info in experiment["hparamInfos"]}
    assert names["batch_size"] == names["lr/all"] == "DATA_TYPE_FLOAT64"
    assert names["precision"] == "DATA_TYPE_STRING"
    columns = [{"metric": info["name"]} for info in experiment["metricInfos"]]
    columns = [{"hparam": name} for name in names] + columns
    groups = hparams(
        board,
        "session_groups",
        experimentName="",
        allowedStatuses=["STATUS_SUCCESS"],
        colParams=columns,
        startIndex=0,
        sliceSize=10,
    )["sessionGroups"]
    assert len(groups) == 1  # the ranks of one run are one line
    assert groups[0]["hparams"]["batch_size"] == 32
    assert {value["name"]["tag"]: value["value"] for value in groups[0]["metricValues"]} == {
        "train/loss": step_values(LAST)["loss"],
        "Accuracy/val": LAST / 64,
    }
    assert [session["status"] for session in groups[0]["sessions"]] == ["STATUS_SUCCESS", "STATUS_SUCCESS"]


def test_event_accumulator_reads_the_same(logdir):
    from tensorboard.backend.event_processing.event_accumulator import STORE_EVERYTHING_SIZE_GUIDANCE, EventAccumulator

    accumulator = EventAccumulator(str(logdir / "digits" / "rank0"), STORE_EVERYTHING_SIZE_GUIDANCE).Reload()
    found = [(event.step, event.value) for event in accumulator.Scalars("train/loss")]
    assert found == [(step, step_values(step)["loss"]) for step in range(1, LAST + 1)]
    assert [event.step for event in accumulator.Images("train_samples")] == [30]


def test_tbparse_reads_the_same(logdir):
    from tbparse import SummaryReader

    reader = SummaryReader(str(logdir / "digits" / "rank0"), event_types={"scalars", "histograms", "text", "hparams"})
    scalars = reader.scalars[reader.scalars["tag"] == "train/loss"]
    assert list(scalars["step"]) == list(range(1, LAST + 1))
    assert list(scalars["value"]) == [step_values(step)["loss"] for step in range(1, LAST + 1)]
    assert set(reader.histograms["tag"]) == {f"{kind}/{layer}" for kind in ("grad", "weight") for layer in LAYERS}
    assert set(reader.text["tag"]) == {"notes", "finding/nonfinite_gradient/fc.weight"}
    assert dict(zip(reader.hparams["tag"], reader.hparams["value"], strict=True))["batch_size"] == 32


@pytest.mark.parametrize("option", ["--load_fast=true", "--load_fast=false"])
def test_a_board_that_looks_on_sees_each_daemons_file(tmp_path, option):
    state = State(str(tmp_path))
    job = Job(state, "live")
    board = Board(tmp_path, option)
    try:
        for last in (20, 40):
            for step in range(last - 19, last + 1):
                job.step(step)
            export(job, crashed=last == 20)
            board.wait(lambda b, last=last: [s for s, _ in b.scalars("live", "train/loss")] == list(range(1, last + 1)))
    finally:
        board.close()


def test_a_clock_that_was_set_back_an_hour_costs_nothing(tmp_path, monkeypatch):
    # The Python loader goes from file to file by name: it would never open a second file that sorts before the first.
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    job = Job(State(str(tmp_path)), "clock")
    create = EventFile.__init__
    hour_ns = 3600 * 10**9
    for last, wall_ns in ((10, 17 * 10**17), (20, 17 * 10**17 - hour_ns)):
        monkeypatch.setattr(EventFile, "__init__", lambda self, fd, ns=wall_ns: create(self, fd, ns))
        for step in range(last - 9, last + 1):
            job.step(step)
        export(job)
    accumulator = EventAccumulator(job.run.path, {"scalars": 0}).Reload()
    assert [event.step for event in accumulator.Scalars("train/loss")] == list(range(1, 21))
    assert msgspec.json.decode((tmp_path / "clock" / "tensorboard.json").read_bytes())["written"]["last_step"] == 20
