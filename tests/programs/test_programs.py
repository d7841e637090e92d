"""Each program of the zoo: the same result with the hooks as without, and a record that says what the program says."""

import math
import signal
import struct
import subprocess
import sys

import pytest

from tests.programs.zoo import HERE, PROGRAMS, Zoo, environment, said
from tests.running_daemon import wait_until

pytestmark = pytest.mark.timeout(300)
SLOW = ("lightning_trainer", "hf_trainer")
FINDINGS = {"clip_scaled": {"unscaled_clipping"}}  # the mistake that this program makes; the others make none
EXIT_CODES = {"ending_code": 3, "ending_exception": 1}
NAMES = [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in PROGRAMS]
#: The program's norms are sums in float64, ours of float32 tensors by torch's kernels.
CLOSE = 2e-6


@pytest.fixture(scope="module")
def zoo(request, tmp_path_factory):
    """Only the programs that the chosen tests name are started."""
    chosen = [item.name for item in request.session.items if item.module is request.module]
    wanted = [name for name in PROGRAMS if any(name in item for item in chosen)]
    running = Zoo(tmp_path_factory.mktemp("zoo"), wanted)
    yield running
    running.close()


def float32(value):
    return struct.unpack("f", struct.pack("f", value))[0]


@pytest.mark.parametrize("name", NAMES)
def test_the_hooks_change_nothing(zoo, name):
    bare, watched = zoo.bare(name), zoo.watched(name)
    assert watched.returncode == bare.returncode == EXIT_CODES.get(name, 0), watched.stderr
    assert bare.final, bare.stderr
    assert watched.final == bare.final
    ours = [line for line in watched.stderr.splitlines() if line.startswith("gpuwatch:")]
    assert len(ours) == 3, watched.stderr  # that it records, what it has recorded, and where to look
    theirs = [line for line in watched.stderr.splitlines() if not line.startswith("gpuwatch:")]
    if name != "ddp":  # torchrun's log lines carry times and ports
        assert theirs == bare.stderr.splitlines()


@pytest.mark.parametrize("name", NAMES[:-1])  # a Trainer has no last loss to print
def test_steps_loss_and_norm_are_the_programs_own(zoo, name):
    for run, final in zip(zoo.runs(name), zoo.watched(name).final, strict=True):
        steps = run.steps()
        assert [step.step for step in steps] == list(range(1, int(final["steps"]) + 1))
        assert run.summary.step == run.summary.counters.steps == final["steps"]
        assert steps[-1].values["loss"] == pytest.approx(final["loss"], rel=1e-12)
        assert run.values["loss"] == steps[-1].values["loss"]
        if "grad_norm" in final:
            assert steps[-1].values["grad_norm"] == pytest.approx(final["grad_norm"], rel=CLOSE)
        written = run.scalars("train/loss")
        assert [step for step, _ in written] == [step.step for step in steps]
        assert written[-1][1] == float32(final["loss"])
        told = {finding.rule for finding in run.summary.findings if finding.severity != "info"}
        assert told == FINDINGS.get(name, set())


def test_plain(zoo):
    run, (final,) = zoo.run("plain"), zoo.watched("plain").final
    steps = run.steps()
    assert steps[0].values["loss"] == final["first_loss"]
    assert run.summary.status == "finished"
    assert (run.summary.tensors, run.summary.parameters) == (4, 8 * 16 + 16 + 16 * 2 + 2)
    assert run.names("tensor") == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert steps[-1].groups == {0: ((0.01, 0.05),)}
    assert "loss_scale" not in run.values  # there is no scaler: no made-up scale of 1
    phases = [
        sum(step.values[f"{phase}_seconds"] for phase in ("data", "forward", "backward", "optimizer", "other"))
        for step in steps[1:]
    ]
    assert phases == pytest.approx([step.values["step_seconds"] for step in steps[1:]], rel=1e-9)
    assert [round(step.values["training_mode"]) for step in steps] == [1] * 24


def test_gan(zoo):
    run, (final,) = zoo.run("gan"), zoo.watched("gan").final
    last = run.steps()[-1]
    assert run.names("optimizer") == ["optimizer_d", "optimizer_g"]
    assert last.losses == {0: final["loss"], 1: final["loss_generator"]}
    assert len(run.parts()) == 40
    names = run.names("tensor")
    assert names[0] == "discriminator.0.weight"
    assert names[4:] == [f"generator.{name}" for name in ("0.weight", "0.bias", "2.weight", "2.bias")]


@pytest.mark.parametrize("name", ["accumulate", "accumulate_divide"])
def test_accumulate(zoo, name):
    run, (final,) = zoo.run(name), zoo.watched(name).final
    assert {step.values["micro_batches"] for step in run.steps()} == {4.0}
    assert run.summary.counters.micro_batches == 4 * final["steps"]


def test_bf16(zoo):
    run = zoo.run("bf16")
    last = run.steps()[-1].values
    assert last["autocast_dtype"] == 2.0  # wire.AUTOCAST_DTYPES: bfloat16
    assert 0.0 < last["autocast_ratio"] <= 1.0
    assert "loss_scale" not in last
    assert run.summary.facts["precision"] == "bf16"


@pytest.mark.parametrize("name", ["fp16_scaler", "fp16_scaler_fused"])
def test_fp16_scaler(zoo, name):
    run, (final,) = zoo.run(name), zoo.watched(name).final
    steps = run.steps()
    assert [step.step - 1 for step in steps if step.values["skipped"]] == [4, 5, 11]
    assert run.summary.counters.skipped_steps == final["skipped"]
    assert run.summary.counters.loss_scale_backoffs == final["backoffs"]
    assert [step.values["loss_scale"] for step in steps] == [1024.0] * 5 + [512.0] + [256.0] * 6 + [128.0] * 8
    assert [step.step - 1 for step in steps if step.values["grad_nonfinite_count"]] == [4, 5, 11]
    assert {step.values["autocast_dtype"] for step in steps} == {1.0}


@pytest.mark.parametrize("name", ["clip", "clip_unscaled", "clip_scaled"])
def test_clip(zoo, name):
    run, (final,) = zoo.run(name), zoo.watched(name).final
    last = run.steps()[-1].values
    assert last["grad_norm_clipped"] == pytest.approx(final["grad_norm_clipped"], rel=CLOSE)
    assert last["clip_max_norm"] == 1.0
    assert last["clipped_while_scaled"] == final["clipped_while_scaled"]


@pytest.mark.parametrize("name", ["lbfgs", "closure"])
def test_closures_are_counted(zoo, name):
    run, (final,) = zoo.run(name), zoo.watched(name).final
    assert run.steps()[-1].values["closure_calls"] == final["closure_calls"]


def test_in_backward(zoo):
    run = zoo.run("in_backward")
    assert sorted(run.names("tensor")) == ["0.bias", "0.weight", "2.bias", "2.weight"]  # in the order in which they step
    assert len(run.names("optimizer")) == 1  # four optimizers that step inside one backward are one step


def test_groups(zoo):
    run, (final,) = zoo.run("groups"), zoo.watched("groups").final
    rates = run.steps()[-1].groups[0]
    assert rates == ((final["lr0"], 0.0), (final["lr1"], 0.0), (final["lr2"], 0.1))
    assert run.scalars("train/lr/group2")[-1][1] == float32(final["lr2"])


def test_frozen(zoo):
    run, (final,) = zoo.run("frozen"), zoo.watched("frozen").final
    assert run.values["tensors_without_gradient"] == final["without_gradient"]


def test_tied(zoo):
    run, (final,) = zoo.run("tied"), zoo.watched("tied").final
    names = run.names("tensor")
    assert len(names) == final["tensors"]
    assert "embed.weight=head.weight" in names
    assert run.summary.parameters == 32 * 12 + 12 * 12 + 12


def test_summary_writer(zoo):
    run, (final,) = zoo.run("summary_writer"), zoo.watched("summary_writer").final
    assert run.summary.scalars["Loss/own"] == (9, final["loss"])
    assert run.summary.scalars["Accuracy/val"] == (9, pytest.approx(final["accuracy"], rel=1e-12))
    mirrored = run.scalars("Loss/own")
    assert [step for step, _ in mirrored] == list(range(10))
    assert mirrored[-1][1] == float32(final["loss"])


def test_compiled(zoo):
    run, (final,) = zoo.run("compiled"), zoo.watched("compiled").final
    assert final["graph_breaks"] == 0
    assert run.names("tensor") == ["0.weight", "0.bias", "2.weight", "2.bias"]


def test_by_hand(zoo):
    run = zoo.run("by_hand")
    events = run.events()
    assert run.scalars("Accuracy/val") == [(step, float32(1 / step)) for step in range(1, 11)]
    assert [image.step for image in events.Images("feature_maps/0")] == [0, 4, 8]  # forwards 1, 5 and 9: steps taken by then
    assert {image.step for image in events.Images("inputs")} == {10}
    assert [(image.width, image.height) for image in events.Images("curve")] == [(200, 100)]
    histogram = events.Histograms("logits")[0].histogram_value
    assert sum(histogram.bucket) == 32
    text = events.Tensors("notes/text_summary") if "notes/text_summary" in events.Tags()["tensors"] else events.Tensors("notes")
    assert text[0].tensor_proto.string_val[0] == b"**a tiny** CNN"
    alone = zoo.runs("by-hand-alone", of="by_hand")[0]  # the bare run: nothing around it, watch alone put the hooks in
    assert (alone.summary.step, alone.values["loss"]) == (10, run.values["loss"])
    assert alone.summary.end_reason == "detached"


def test_endings(zoo):
    assert (zoo.run("ending_code").summary.status, zoo.run("ending_code").summary.end_reason) == ("failed", "exit 3")
    failed = zoo.run("ending_exception").summary
    assert (failed.status, failed.end_reason) == ("failed", "exception")
    assert "RuntimeError: the data set has gone" in zoo.watched("ending_exception").stderr


def test_reads_stdin(zoo):
    assert zoo.watched("reads_stdin").final[0]["rows"] == 3


def test_with_own_site(zoo):
    assert zoo.watched("with_own_site").final[0]["own_site_runs"] == 1


def test_ddp(zoo):
    runs, final = zoo.runs("ddp"), zoo.watched("ddp").final
    assert [(run.summary.rank, run.summary.world_size, run.folder.name) for run in runs] == [(0, 2, "rank0"), (1, 2, "rank1")]
    assert len(final) == 2
    norms = [run.steps()[-1].values["grad_norm"] for run in runs]
    assert norms[0] == norms[1]  # after the all-reduce; local gradients would differ
    assert all(run.names("tensor") == ["0.weight", "0.bias", "2.weight", "2.bias"] for run in runs)


@pytest.mark.slow
def test_lightning_trainer(zoo):
    run = zoo.run("lightning_trainer")
    last = run.steps()[-1].values
    assert run.summary.hello.framework == "lightning"
    assert last["micro_batches"] == 2
    assert last["grad_norm_clipped"] <= 0.5 * (1 + CLOSE) < last["grad_norm"]
    # Lightning divides each loss by two before backward; the loss recorded is the one before (test_steps_loss_and_norm...).
    assert run.names("tensor") == ["net.0.weight", "net.0.bias", "net.2.weight", "net.2.bias"]


@pytest.mark.slow
def test_hf_trainer(zoo):
    run, (final,) = zoo.run("hf_trainer"), zoo.watched("hf_trainer").final
    steps = run.steps()
    assert run.summary.hello.framework == "transformers"
    assert len(steps) == final["steps"]
    assert math.fsum(step.values["loss"] for step in steps) / len(steps) == pytest.approx(final["mean_loss"], rel=1e-6)
    assert steps[-1].values["clip_max_norm"] == 0.5
    assert run.names("tensor")[0] == "transformer.wte.weight=lm_head.weight"


def test_sigterm_reaches_the_program_and_its_last_step_is_kept(zoo):
    command = [
        sys.executable,
        "-m",
        "gpuwatch",
        "run",
        "--name",
        "terminated",
        "--",
        sys.executable,
        str(HERE / "ending.py"),
        "wait",
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(zoo.daemon))
    try:
        line = process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    ended = said(subprocess.CompletedProcess(command, process.returncode, line + out, err))
    assert ended.returncode == -signal.SIGTERM
    known = wait_until(
        lambda: next((k for k in zoo.daemon.runs().values() if k.run == "terminated" and k.status != "live"), None)
    )
    assert (known.step, known.values["loss"]) == (8, ended.final[0]["loss"])
    assert (known.status, known.end_reason) == ("failed", "signal 15")
