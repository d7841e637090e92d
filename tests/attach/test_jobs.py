"""Jobs of every make, attached to in the middle: each of their steps is seen once, or their owner is told why not."""

import subprocess

import pytest

from gpuwatch.attach import attacher
from gpuwatch.attach.machines import here
from tests.attach.conftest import ask, run_of
from tests.running_daemon import wait_until

pytestmark = pytest.mark.skipif(here() is None, reason="the ptrace injector is built for x86-64 and aarch64")
TORCH = ["plain", "lbfgs", "in_backward", "super_step", "ddp", "fsdp1", "fsdp2", "compiled_model", "compiled_optimizer"]
FRAMEWORKS = ["compiled_step", "accelerate", "lightning", "transformers"]


def started(target):
    """It has taken three steps of its present kind, and waits."""
    said = target.stdout.readline()
    while said not in ("ready\n", ""):
        said = target.stdout.readline()
    assert said, target.stderr.read()
    ask(target, "go 3")


def see_each_step_once(target, daemon, kind):
    options = {"socket": str(daemon.socket), "told": None, "run": kind}
    outcome = attacher.apply(target.pid, "begin", options, timeout_seconds=60)
    assert outcome.answer == "installed", (kind, outcome)
    ask(target, "go 7")
    run = wait_until(lambda: (r := run_of(target, daemon)) and r.run == kind and r.step >= 7 and r)
    assert run.step == 7, kind
    assert run.values["grad_norm"] > 0, kind
    assert attacher.apply(target.pid, "end", {}, timeout_seconds=60).answer == "detached"
    wait_until(lambda: run_of(target, daemon).status != "live")
    assert run_of(target, daemon).step == 7, kind  # nothing came twice, or late
    ask(target, "go 2")


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("kinds", [TORCH, FRAMEWORKS], ids=["torch", "frameworks"])
def test_each_step_is_seen_once(kinds, launch, daemon, tmp_path):
    with (tmp_path / "stderr").open("w+") as said:
        target = launch("jobs.py", *kinds, wait=False, stderr=said)
        for kind in kinds:
            started(target)
            see_each_step_once(target, daemon, kind)
            target.stdin.write("next\n")
            target.stdin.flush()
        assert target.wait(60) == 0, (tmp_path / "stderr").read_text()


def test_an_optimizer_that_is_not_torchs_is_told_of(launch, daemon):
    target = launch("jobs.py", "foreign_optimizer", wait=False, stderr=subprocess.PIPE)
    started(target)
    options = {"socket": str(daemon.socket), "told": "hooks attached"}
    assert attacher.apply(target.pid, "begin", options, timeout_seconds=60).answer == "installed"
    assert target.stderr.readline() == "gpuwatch: hooks attached\n"
    ask(target, "go 40")
    said = target.stderr.readline()
    assert "no step of a torch optimizer" in said, said
    assert run_of(target, daemon) is None
    assert attacher.apply(target.pid, "end", {}, timeout_seconds=60).answer == "detached"
