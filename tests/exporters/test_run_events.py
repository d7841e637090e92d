import io
import math
import struct

import pytest
from gpuwatch_hooks import wire
from PIL import Image
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.plugins.hparams import api_pb2
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from gpuwatch.config import TensorBoard
from gpuwatch.exporters.run_events import NAMES_NS, RunEvents
from gpuwatch.exporters.written import Written
from gpuwatch.state.findings import Finding
from gpuwatch.state.journal_reader import JournalReader
from gpuwatch.state.records import Media, Meta, Names, Scalar
from tests.exporters.job import LAYERS, PROBED, Job, bucket, layer_value, learning_rate, step_values


class Board:
    """A RunEvents fed from the journal of a job, and what came out."""

    def __init__(self, state, *, gpu_readings=lambda _: [], max_tags=500, job=Job, **settings):
        self.job = job(state, start_ns=10**12)
        self.translator = RunEvents(TensorBoard(**settings), max_tags, Written(), gpu_readings)
        self.journal = JournalReader(self.job.run.path + "/journal")
        self.events = []

    def read(self):
        while entries := self.journal.read():
            for entry in entries:
                self.take(self.translator.observe(entry.frame.decode()))
        return self

    def take(self, serialized):
        self.events += [Event.FromString(data) for data in serialized]

    def values(self, tag):
        """[(step, value)] of a tag, in the order of the file."""
        return [(event.step, value) for event in self.events for value in event.summary.value if value.tag == tag]

    def scalars(self, tag):
        return [(step, value.simple_value) for step, value in self.values(tag)]

    def tags(self):
        return {value.tag for event in self.events for value in event.summary.value}


@pytest.fixture
def board(state):
    return Board(state)


def test_a_step_is_one_event_with_the_contracts_tags(board):
    board.job.step(1)
    board.job.step(2)
    board.read()
    assert [event.step for event in board.events] == [1, 2]
    assert board.events[1].wall_time == pytest.approx(1.7e9 + 0.2)
    values = step_values(2)
    for field, tag in {
        "loss": "train/loss",
        "grad_norm": "grad/norm",
        "grad_absmax": "grad/absmax",
        "loss_scale": "amp/loss_scale",
        "skipped": "amp/skipped",
        "grad_underflow_ratio": "amp/underflow_ratio",
        "forward_seconds": "phase/forward_seconds",
        "data_seconds": "phase/data_seconds",
    }.items():
        assert board.scalars(tag)[1] == (2, values[field]), tag
    assert board.scalars("train/lr/all") == [(1, learning_rate(1)), (2, learning_rate(2))]


def test_layers(board):
    board.job.step(1)
    board.read()
    for index, layer in enumerate(LAYERS):
        for last, column in {"norm": "norm", "absmax": "absmax", "mean": "mean_abs", "zero_ratio": "zero_ratio"}.items():
            assert board.scalars(f"grad/{layer}/{last}") == [(1, layer_value(1, index, "gradient", column))]
        weight, update = layer_value(1, index, "weight", "norm"), layer_value(1, index, "update", "norm")
        assert board.scalars(f"weight/{layer}/norm") == [(1, weight)]
        assert board.scalars(f"update/{layer}/ratio") == [(1, pytest.approx(update / weight))]


def test_histograms_over_the_exponent(board):
    board.job.step(1)
    board.read()
    for index, layer in enumerate(LAYERS):
        ((_, value),) = board.values(f"grad/{layer}")
        counts = {wire.HISTOGRAM_FIRST_EXPONENT + i: bucket(1, index, i) for i in range(1, wire.HISTOGRAM_BUCKETS)}
        drawn = dict(zip((limit - 1 for limit in value.histo.bucket_limit), value.histo.bucket, strict=True))
        assert {exponent: count for exponent, count in drawn.items() if count} == {e: c for e, c in counts.items() if c}
        assert value.histo.num == sum(counts.values())
        assert value.histo.min == min(e for e, c in counts.items() if c)
        assert value.histo.max == max(e for e, c in counts.items() if c) + 1
        assert "log2" in value.metadata.summary_description


def test_layers_and_histograms_are_thinned_by_time_beginning_with_the_first_step(state):
    board = Board(state, layers_every_seconds=1.0, histograms_every_seconds=2.0)  # the job makes ten steps a second
    for step in range(1, 32):
        board.job.step(step)
    board.read()
    assert [step for step, _ in board.values("grad/fc.weight/norm")] == [1, 11, 21, 31]
    assert [step for step, _ in board.values("grad/fc.weight")] == [1, 21]
    assert len(board.values("train/loss")) == 31


def test_every_step_when_the_thinning_is_zero_and_none_when_layers_are_off(state, tmp_path):
    board = Board(state, layers_every_seconds=0, histograms_every_seconds=0)
    for step in (1, 2, 3):
        board.job.step(step)
    board.read()
    assert len(board.values("grad/fc.weight/norm")) == len(board.values("weight/fc.weight")) == 3
    off = RunEvents(TensorBoard(layers=False), 500, Written())
    reader = JournalReader(board.job.run.path + "/journal")
    tags = {
        value.tag
        for entry in reader.read()
        for data in off.observe(entry.frame.decode())
        for value in Event.FromString(data).summary.value
    }
    assert "train/loss" in tags
    assert not any("fc.weight" in tag for tag in tags)


def test_no_value_that_was_not_measured(board):
    board.job.step(1, tables=False)
    board.read()
    assert "grad/fc.weight/norm" not in board.tags()
    assert "grad/fc.weight" not in board.tags()


def test_nan_and_infinity_arrive(board):
    board.job.step(1, loss=math.nan, grad_norm=math.inf)
    board.read()
    assert math.isnan(board.scalars("train/loss")[0][1])
    assert board.scalars("grad/norm")[0][1] == math.inf


def test_two_optimizers_of_one_iteration(board):
    board.job.step(1, complete=False, optimizer=0, loss=0.5, grad_norm=3.0)
    board.job.step(1, complete=True, optimizer=1, loss=0.25, grad_norm=4.0)
    board.read()
    assert board.scalars("grad/norm") == [(1, 5.0)]
    assert board.scalars("train/loss/SGD") == [(1, 0.5)]
    assert board.scalars("train/loss/Adam") == [(1, 0.25)]
    assert board.scalars("train/lr/rest") == [(1, learning_rate(1))]


def test_the_jobs_own_scalars_have_their_own_axis(board):
    board.job.step(100)
    board.job.scalar("Accuracy/val", 1, 0.5)
    board.job.scalar("Accuracy/val", 2, 0.75)
    board.read()
    assert board.scalars("Accuracy/val") == [(1, 0.5), (2, 0.75)]


def test_steps_of_a_tag_only_rise(board):
    for step in (5, 6, 6, 4, 7):
        board.job.scalar("a", step, step)
    board.read()
    assert [step for step, _ in board.scalars("a")] == [5, 6, 7]
    assert board.translator.left_out == 2


def test_a_tag_of_the_job_that_is_ours_is_kept_apart(board):
    board.job.step(1)
    board.job.scalar("train/loss", 1000, 9.0)
    board.job.media("histogram", "grad/fc.weight", 1000, (1, 3), struct.pack("<3d", 0, 1, 2))
    board.job.step(2)
    board.read()
    assert [step for step, _ in board.scalars("train/loss")] == [1, 2]
    assert board.scalars("logged/train/loss") == [(1000, 9.0)]
    assert [step for step, _ in board.values("grad/fc.weight")] == [1]
    assert [step for step, _ in board.values("logged/grad/fc.weight")] == [1000]


def test_one_kind_of_data_a_tag(board):
    board.job.scalar("x", 1, 1.0)
    board.job.media("text", "x", 2, (), b"words")
    board.job.scalar("x", 3, 3.0)
    board.read()
    assert board.scalars("x") == [(1, 1.0), (3, 3.0)]
    assert board.tags() >= {"x", "x/text"}


def test_one_tag_too_many(state):
    board = Board(state, max_tags=2)
    for tag in ("a", "b", "c", "a"):
        board.job.scalar(tag, len(board.events) + 1, 1.0)
        board.read()
    assert board.tags() == {"a", "b"}
    assert board.translator.left_out == 1


@pytest.mark.parametrize("step", [-(1 << 63), 1 << 62])
def test_a_step_that_no_event_can_hold(board, step):
    board.take(board.translator.observe((Scalar("a", step, 1.0, 0),)))
    assert board.events == []


def test_images_figures_histograms_and_text(board):
    pixels = bytes(range(192))
    board.job.media("images", "train_samples", 1, (2, 4, 8, 3), pixels)
    png = io.BytesIO()
    Image.new("RGB", (30, 20), (255, 0, 0)).save(png, "PNG")
    board.job.media("figure", "curve", 1, (), png.getvalue())
    board.job.media("histogram", "mine", 1, (2, 3), struct.pack("<6d", -1.0, 0.0, 5.0, 0.0, 2.0, 7.0))
    board.job.media("text", "notes", 1, (), "# Überschrift".encode())
    board.read()
    image = board.values("train_samples")[0][1].image
    sheet = Image.open(io.BytesIO(image.encoded_image_string))
    assert (image.width, image.height) == sheet.size == (8, 9)
    assert sheet.crop((0, 0, 8, 4)).tobytes() == pixels[:96]
    assert board.values("curve")[0][1].image.encoded_image_string == png.getvalue()
    histogram = board.values("mine")[0][1].histo
    assert (histogram.min, list(histogram.bucket_limit), list(histogram.bucket)) == (-1.0, [0.0, 2.0], [5.0, 7.0])
    assert (histogram.max, histogram.num, histogram.sum) == (2.0, 12.0, -0.5 * 5 + 1.0 * 7)
    text = board.values("notes")[0][1]
    assert text.tensor.string_val[0].decode() == "# Überschrift"
    assert text.metadata.plugin_data.plugin_name == "text"


@pytest.mark.parametrize(
    ("kind", "shape", "data"),
    [("images", (1, 4, 4, 3), b"short"), ("images", (4, 4), b"x"), ("figure", (), b"GIF"), ("histogram", (1, 3), b"12345")],
)
def test_media_that_contradict_themselves_are_left_out(board, kind, shape, data):
    board.take(board.translator.observe(Media(kind, "m", 1, shape, data, 0)))
    assert board.events == []
    assert board.translator.left_out == 1


def test_an_empty_histogram_and_one_of_nothing_but_zeros(board):
    board.job.media("histogram", "empty", 1, (0, 3), b"")
    board.read()
    assert list(board.values("empty")[0][1].histo.bucket) == []


def test_a_finding_is_text_when_it_opens_and_when_it_closes(board, state):
    board.job.step(60)
    words = {
        "statistic": "entries",
        "value": 3.0,
        "threshold": 0.0,
        "summary": "3 are not finite.",
        "action": "Lower it.",
        "time": 1.7e9,
    }
    for layer in ("fc.weight", "conv1.bias"):
        finding = Finding("nonfinite_gradient", "critical", 50, 52, 52, layer=layer, **words)
        state.find(board.job.run, finding)
    finding.state, finding.last_step = "closed", 58
    state.find(board.job.run, finding)
    state.tick()
    board.read()
    opened, closed = board.values("finding/nonfinite_gradient/conv1.bias")
    assert (opened[0], closed[0]) == (52, 58)
    markdown = opened[1].tensor.string_val[0].decode()
    for part in ("nonfinite_gradient", "critical", "3 are not finite.", "Lower it.", "`conv1.bias`", "50"):
        assert part in markdown
    assert "closed after step 58" in closed[1].tensor.string_val[0].decode()
    assert len(board.values("finding/nonfinite_gradient/fc.weight")) == 1


def test_gpu_readings_stand_on_the_steps_axis_about_once_a_second(state):
    board = Board(state, gpu_readings=lambda ns: [("gpu/0/power", ns / 1e9)] if ns > 1.0003e12 else [])
    for step in range(1, 24):  # ten a second
        board.job.step(step)
    board.read()
    expected = [(4, pytest.approx(1000.4)), (13, pytest.approx(1001.3)), (22, pytest.approx(1002.2))]
    assert board.scalars("gpu/0/power") == expected


def test_hyperparameters_and_results_when_the_run_ends(board):
    for step in (1, 200):
        board.job.step(step)
    board.job.scalar("Accuracy/val", 1, 0.9)
    board.job.control(Meta({**PROBED, "amp_probe_ticket": 7, "on_demand_ticket": 8}))
    board.job.end(200, "exception")
    board.read()
    assert not any(tag.startswith("_hparams_") for tag in board.tags())
    board.take(board.translator.finish("exception"))
    board.take(board.translator.finish("exception"))
    plugin = {
        tag: HParamsPluginData.FromString(board.values(f"_hparams_/{tag}")[0][1].metadata.plugin_data.content)
        for tag in ("experiment", "session_start_info", "session_end_info")
    }
    assert len(board.values("_hparams_/experiment")) == 1
    start = plugin["session_start_info"].session_start_info
    assert start.hparams["batch_size"].number_value == 32
    assert start.hparams["precision"].string_value == "fp16"
    assert start.hparams["lr/all"].number_value == learning_rate(1)  # what it was started with, not what it ended with
    assert start.hparams["weight_decay/all"].number_value == 0.01
    assert start.hparams["amp_speedup_ratio"].number_value == 1.5
    assert not {"amp_probe_ticket", "amp_speedup_low", "on_demand_ticket"} & set(start.hparams)
    assert [m.name.tag for m in plugin["experiment"].experiment.metric_infos] == ["train/loss", "Accuracy/val"]
    assert plugin["session_end_info"].session_end_info.status == api_pb2.STATUS_FAILURE


def test_a_run_that_said_nothing_leaves_no_event(board):
    board.read()
    board.take(board.translator.finish("exit"))
    assert board.events == []


def test_a_step_that_stays_silent_is_written_when_the_journal_has_no_more(board):
    board.job.step(1, complete=False)
    board.read()
    assert board.events == []
    board.take(board.translator.flush(board.job.at(1) + 10**9))
    assert [event.step for event in board.events] == [1]


def test_the_same_journal_gives_the_same_bytes(board):
    for step in range(1, 30):
        board.job.step(step)
    board.job.scalar("a", 1, 2.0)
    board.read()
    again = RunEvents(TensorBoard(), 500, Written())
    reader = JournalReader(board.job.run.path + "/journal")
    events = [data for entry in reader.read() for data in again.observe(entry.frame.decode())]
    assert [Event.FromString(data) for data in events] == board.events


class LateNames(Job):
    """Its names come when `tell` is called, as those of a real job come a little behind its first steps."""

    def control(self, record):
        if isinstance(record, Names):
            self.__dict__.setdefault("kept", []).append(record)
        else:
            super().control(record)

    def tell(self):
        for record in self.kept:
            super().control(record)


def test_steps_wait_for_their_names(state):
    board = Board(state, job=LateNames)
    for step in (1, 2):
        board.job.step(step)
    board.read()
    assert board.events == []
    assert not board.translator.is_idle
    board.job.scalar("a", 1, 1.0)  # what needs no names does not wait
    board.read()
    assert [event.step for event in board.events] == [1]
    board.job.tell()
    board.read()
    assert [step for step, _ in board.scalars("train/loss")] == [1, 2]
    assert board.tags() >= {"grad/fc.weight/norm", "train/lr/all"}
    assert not any("_other" in tag or "group0" in tag for tag in board.tags())
    assert board.translator.is_idle


def test_names_that_never_come_are_waited_for_once(state):
    board = Board(state, job=LateNames)
    for step in range(1, 55):  # ten steps a second
        board.job.step(step)
        board.read()
        if step <= 50:
            assert board.events == []
    assert [step for step, _ in board.scalars("train/loss")] == list(range(1, 55))
    assert board.tags() >= {"train/lr/group0"}
    assert not any(tag.startswith(("weight/conv", "grad/_other", "weight/_other")) for tag in board.tags())


def test_a_silent_end_of_the_wait(state):
    board = Board(state, job=LateNames)
    board.job.step(1)
    board.read()
    board.take(board.translator.flush(board.job.at(1) + NAMES_NS))
    assert [step for step, _ in board.scalars("train/loss")] == [1]


def test_an_end_does_not_wait(state):
    board = Board(state, job=LateNames)
    board.job.step(1)
    board.read()
    board.take(board.translator.finish("exit"))
    assert [step for step, _ in board.scalars("train/loss")] == [1]
