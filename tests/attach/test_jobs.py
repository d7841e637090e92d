"""Jobs of every make, attached to in the middle: each of their steps is seen once, or their owner is told why not."""

import os
import subprocess

import pytest

from gpuwatch.attach import attacher
from tests.attach.conftest import ask, run_of, until
from tests.running_daemon import wait_until

pytestmark = pytest.mark.skipif(os.uname().machine != "x86_64", reason="the ptrace injector is built for x86-64")
SEEN = [
    "plain",
    "lbfgs",
    "in_backward",
    "super_step",
    "ddp",
    "fsdp1",
    "fsdp2",
    "compiled_model",
    "compiled_optimizer",
    "compiled_step",
    pytest.param("accelerate", marks=pytest.mark.slow),
    pytest.param("lightning", marks=pytest.mark.slow),
    pytest.param("transformers", marks=pytest.mark.slow),
]


def held(kind, launch):
    """A job of this kind that has taken three steps and waits."""
    target = launch("jobs.py", kind, wait=False, stderr=subprocess.PIPE)
    said = target.stdout.readline()
    while said not in ("ready\n", ""):
        said = target.stdout.readline()
    assert said, target.stderr.read()
    ask(target, "go 3")
    return target


@pytest.mark.parametrize("kind", SEEN)
def test_each_step_is_seen_once(kind, launch, daemon):
    target = held(kind, launch)
    options = {"socket": str(daemon.socket), "told": None, "run": kind}
    for _ in range(2):
        outcome = attacher.apply(target.pid, "begin", options, timeout_seconds=40)
        assert outcome.answer == "installed", outcome
        ask(target, "go 7")
        run = wait_until(lambda: (r := run_of(target, daemon)) and r.status == "live" and r.step >= 7 and r)
        assert run.step == 7
        assert run.values["grad_norm"] > 0
        assert attacher.apply(target.pid, "end", {}, timeout_seconds=40).answer == "detached"
        wait_until(lambda: run_of(target, daemon).status != "live")
        assert run_of(target, daemon).step == 7  # nothing came twice, or late
    ask(target, "go 2")
    assert target.poll() is None


def test_an_optimizer_that_is_not_torchs_is_told_of(launch, daemon):
    target = held("foreign_optimizer", launch)
    options = {"socket": str(daemon.socket), "told": "hooks attached"}
    assert attacher.apply(target.pid, "begin", options, timeout_seconds=40).answer == "installed"
    assert target.stderr.readline() == "gpuwatch: hooks attached\n"
    ask(target, "go 40")
    said = target.stderr.readline()
    assert "no step of a torch optimizer" in said, said
    assert run_of(target, daemon) is None
    until(lambda: attacher.apply(target.pid, "end", {}, timeout_seconds=40).answer == "detached")
