"""Jobs in circumstances that make an attach hard: it works and leaves nothing, or is refused in a sentence; none is harmed."""

import os
import tempfile
from pathlib import Path

import pytest

from gpuwatch.attach import attacher
from tests.attach.conftest import ask, run_of, until
from tests.running_daemon import wait_until

pytestmark = pytest.mark.skipif(os.uname().machine != "x86_64", reason="the ptrace injector is built for x86-64")


def attach(target, daemon):
    options = {"socket": str(daemon.socket), "told": None}
    return attacher.apply(target.pid, "begin", options, timeout_seconds=60)


def open_to_all(path):
    """Let every user come to `path`, a socket somewhere in the folder for temporary files."""
    os.chmod(path, 0o666)
    for folder in path.parents:
        if Path(tempfile.gettempdir()) in folder.parents:
            os.chmod(folder, folder.stat().st_mode | 0o111)


def detach(target):
    return attacher.apply(target.pid, "end", {}, timeout_seconds=60)


@pytest.mark.parametrize(
    "circumstances",
    [
        ["alarms", "many_threads", "collector_off", "fault_handler"],
        ["profiled", "saving", "collector_frozen"],
        ["traced", "undumpable", "write_or_execute"],
    ],
    ids="+".join,
)
def test_it_is_recorded_and_left_as_it_was(circumstances, launch, daemon):
    target = launch("hard.py", *circumstances)
    before = ask(target, "look")
    outcome = attach(target, daemon)
    assert outcome.answer == "installed", outcome
    wait_until(lambda: (r := run_of(target, daemon)) and r.step > 3)
    outcome = detach(target)
    assert outcome.answer == "detached", outcome
    assert ask(target, "look") == before
    step = ask(target, "loop")["step"]
    until(lambda: ask(target, "loop")["step"] > step + 3)


@pytest.mark.parametrize(
    ("circumstance", "what"),
    [
        ("without_memfd", "a file in memory, which the records go through (Operation not permitted)"),
        ("without_sockets", "a Unix socket (Operation not permitted)"),
        pytest.param(
            "without_threads",
            "another thread (can't start new thread)",
            marks=pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become a user who has no process yet"),
        ),
    ],
)
def test_what_its_sandbox_denies_is_told(circumstance, what, launch, daemon):
    open_to_all(daemon.socket)
    target = launch("hard.py", circumstance)
    before = ask(target, "look")
    outcome = attach(target, daemon)
    assert (outcome.answer, outcome.sentence) == ("refused", f"the kernel refuses it {what}"), outcome
    assert "sandbox" in outcome.fix
    assert ask(target, "look") == before
    assert detach(target).answer == "absent"
    step = ask(target, "loop")["step"]
    until(lambda: ask(target, "loop")["step"] > step + 3)
