"""An unmodified job, the real daemon, and an attach between them: what is recorded, and that nothing is left or changed."""

import subprocess
import sys

import pytest

from gpuwatch.attach import attacher, loader, payload
from gpuwatch.attach.machines import here
from tests.attach.conftest import ask, run_of, until
from tests.running_daemon import PATIENCE, RunningDaemon, wait_until

pytestmark = pytest.mark.skipif(here() is None, reason="the ptrace injector is built for x86-64 and aarch64")
CYCLES = max(8, round(30 / PATIENCE))
NAMES = ["body.0.weight", "body.0.bias", "body.2.weight", "body.2.bias", "head.weight", "head.bias"]


def attach(target, daemon, **options):
    options = {"socket": str(daemon.socket), "told": None, **options}
    return attacher.apply(target.pid, "begin", options, timeout_seconds=30)


def detach(target):
    return attacher.apply(target.pid, "end", {}, timeout_seconds=30)


def ours_in_maps(pid):
    """What an attach maps: the area of its text, far below everything else, the ring, and a page for forked children."""
    with open(f"/proc/{pid}/maps") as lines:
        return [line for line in lines if "gpuwatch" in line or line.startswith("10000") or "/dev/zero" in line]


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_an_unmodified_job_is_seen_within_two_steps(precision, launch, daemon):
    target = launch("trains.py", precision)
    ask(target, "go 5")
    until(lambda: ask(target, "loop")["step"] > 3)
    outcome = attach(target, daemon, run=f"seen-{precision}")
    assert outcome.answer == "installed", outcome
    assert outcome.stopped_microseconds > 0
    ask(target, "go 2")
    run = wait_until(lambda: (r := run_of(target, daemon)) and r.step == 2 and r.tensors and r)
    assert run.run == f"seen-{precision}"
    assert run.status == "live"
    assert 0 < run.values["loss"] < 3
    assert run.values["grad_norm"] > 0
    assert run.learning_rates == [1e-3]
    assert run.tensors == len(NAMES)
    assert run.hello.program == "trains"
    assert run.facts["attached"] == "attach"
    if precision == "fp16":
        assert run.values["loss_scale"] >= 256
    ask(target, "go 50")
    wait_until(lambda: run_of(target, daemon).step == 52)
    assert detach(target).answer == "detached"
    final = wait_until(lambda: (r := run_of(target, daemon)).status != "live" and r)
    assert final.end_reason == "detached"
    assert final.step == 52
    assert not any(final.counters.dropped.values())


def test_layers_have_the_names_of_the_users_own_variables(launch, daemon):
    target = launch("trains.py")
    attach(target, daemon, run="names")
    names = wait_until(
        lambda: {name for name in NAMES if any(name.encode() in raw for raw in journals(daemon, "names"))} or None
    )
    assert names == set(NAMES)
    detach(target)


def journals(daemon, run):
    return [path.read_bytes() for path in (daemon.logdir / run).rglob("*.journal")]


@pytest.mark.parametrize("workers", [0, 2])
def test_detach_leaves_nothing(workers, launch, daemon):
    target = launch("trains.py", "fp16", workers)
    until(lambda: ask(target, "loop")["step"] > 3)
    before, mapped = ask(target, "look"), ours_in_maps(target.pid)
    assert before["modules"] == before["patched"] == mapped == []
    for _ in range(3):
        assert attach(target, daemon).answer == "installed"
        during = ask(target, "look")
        assert during["modules"]
        assert during["patched"]
        assert during["pre_hooks"] == 1
        assert detach(target).answer == "detached"
        after = ask(target, "look")
        if workers:  # queues and sockets of the workers come and go with each epoch
            for one in (before, after):
                one["descriptors"], one["tasks"], one["threads"] = [], 0, []
        assert after == before
        assert ours_in_maps(target.pid) == []
    assert detach(target).answer == "absent"


def test_a_second_attach_changes_nothing_but_the_settings(launch, daemon):
    target = launch("trains.py")
    assert attach(target, daemon, run="twice").answer == "installed"
    wait_until(lambda: run_of(target, daemon))
    first = ask(target, "look")
    assert attach(target, daemon, run="other", every=7).answer == "already"
    second = ask(target, "look")
    assert second == first
    assert run_of(target, daemon).run == "twice"
    assert detach(target).answer == "detached"


def test_hooks_whose_daemon_has_gone_are_led_to_the_one_that_asks(launch, daemon, tmp_path):
    target = launch("trains.py")
    with RunningDaemon(tmp_path) as first:
        assert attach(target, first).answer == "installed"
        wait_until(lambda: run_of(target, first))
        refused = attach(target, daemon)
        assert refused.answer == "refused"
        assert refused.sentence == f"another daemon records it already (it listens at {first.socket})"
        assert f"gpuwatch detach {target.pid}" in refused.fix
    assert run_of(target, daemon) is None
    until(lambda: attach(target, daemon).answer == "already")
    wait_until(lambda: (r := run_of(target, daemon)) and r.tensors and r)
    assert detach(target).answer == "detached"


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_many_cycles_change_no_bit_of_losses_and_weights(precision, launch, daemon):
    target = launch("trains.py", precision)
    for _ in range(CYCLES):
        assert attach(target, daemon).answer == "installed"
        step = ask(target, "loop")["step"]
        until(lambda step=step: ask(target, "loop")["step"] >= step + 3)
        assert detach(target).answer == "detached"
    touched = ask(target, "end")
    untouched = ask(launch("trains.py", precision), f"end {touched['steps']}")
    assert touched == untouched
    assert touched["steps"] > 3 * CYCLES


def test_an_attach_during_import_waits_for_it(launch, daemon):
    target = launch("trains.py", wait=False)
    until(lambda: attacher.look(target.pid)[0].torch, 60)
    outcome = attach(target, daemon)
    assert outcome.answer == "installed", outcome
    assert target.stdout.readline() == "ready\n"
    wait_until(lambda: (r := run_of(target, daemon)) and r.step > 3)
    assert detach(target).answer == "detached"


def attach_inside_the_import_lock(launch, daemon, monkeypatch, **changes):
    """With a loader that imports a module of the library which is not loaded yet, at the moment at which it thinks it may."""
    source = loader.SOURCE.replace("    half = None if to_leave", "    import colorsys\n    half = None if to_leave")
    for old, new in changes.items():
        assert old in source
        source = source.replace(old + "():", new)
    modules = payload._compiled_here() | {"gpuwatch_attach": (False, source)}
    monkeypatch.setattr(payload, "compiled", lambda _: modules)
    target = launch("import_lock.py", wait=False, stderr=subprocess.PIPE)
    assert target.stdout.readline() == "locked\n"
    return target, attach(target, daemon)


def test_an_attach_inside_the_import_systems_lock_waits_for_it(launch, daemon, monkeypatch):
    target, outcome = attach_inside_the_import_lock(launch, daemon, monkeypatch)
    assert outcome.answer == "installed", outcome
    assert outcome.seconds > 1.0  # until then it was turned away
    assert target.stdout.readline() == "ready\n"
    wait_until(lambda: (r := run_of(target, daemon)) and r.step > 3)


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="Python 3.12 keeps a list there")
def test_twin_without_that_the_jobs_own_import_fails(launch, daemon, monkeypatch):
    target, _ = attach_inside_the_import_lock(launch, daemon, monkeypatch, **{"if in_import_lock": "if False:"})
    assert target.wait(60) == 1
    assert "KeyError" in target.stderr.read()


def test_the_job_outlives_an_attach_to_a_daemon_that_is_not_there(launch, tmp_path):
    target = launch("trains.py")
    before = ask(target, "look")
    options = {"socket": str(tmp_path / "nobody.sock"), "told": None}
    assert attacher.apply(target.pid, "begin", options).answer == "installed"
    step = ask(target, "loop")["step"]
    until(lambda: ask(target, "loop")["step"] > step + 20)
    assert detach(target).answer == "detached"
    assert ask(target, "look") == before
