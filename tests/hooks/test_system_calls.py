"""H2: recording adds no system call to a step of the training thread, daemon or no daemon.

What remains is the hand-over of Python's own lock when the control thread wakes, a few times a second whatever the number of
steps: that is a futex on each side, counted here against the wake-ups.
"""

import collections
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("steps_between_marks.py")
STEPS = 1000

pytestmark = pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")

#: The protection off: what a hook that sends each record over a socket would do.
SENDS = """
import runpy, socket, sys
from gpuwatch_hooks import session
near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
def write(self, kind, head, body=b""):
    near.send(bytes(head)); far.recv(65536)
session.Session.write = write
sys.argv = [sys.argv[1], "--hooks"]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def _calls_of_1000_steps(folder, *arguments):
    """(system calls of the training thread, those of all other threads, what the script printed)."""
    record = folder / "strace"
    script = subprocess.Popen(
        [sys.executable, *map(str, arguments)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=dict(os.environ)
    )
    tracer = None
    try:
        assert script.stdout.readline() == "warm\n"
        # Attached only now: tracing the import of torch would take ten seconds.
        tracer = subprocess.Popen(["strace", "-f", "-o", record, "-p", str(script.pid)], stderr=subprocess.PIPE, text=True)
        assert "attached" in tracer.stderr.readline()
        printed, _ = script.communicate("go\n", timeout=100)
        assert script.returncode == 0
        tracer.communicate(timeout=20)
    finally:
        for process in (script, tracer):
            if process is not None and process.poll() is None:
                process.kill()
                process.wait()
    lines = record.read_text().splitlines()
    first, last = (next(i for i, line in enumerate(lines) if mark in line) for mark in ("/gpuwatch-begin", "/gpuwatch-end"))
    thread = lines[first].split()[0]
    own, others = collections.Counter(), collections.Counter()
    for line in lines[first + 1 : last]:
        call = re.match(r"(\d+) +(\w+)\(", line)
        if call:
            (own if call[1] == thread else others)[call[2]] += 1
    return own, others, printed


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    return _calls_of_1000_steps(tmp_path_factory.mktemp("bare"), SCRIPT)


@pytest.mark.parametrize("daemon", ["absent", "listening", "stuck"])
def test_no_system_call_is_added_to_a_step(bare, tmp_path, make_daemon, socket_path, daemon):
    if daemon != "absent":
        peer = make_daemon(acknowledge=daemon != "stuck")
    own, others, printed = _calls_of_1000_steps(tmp_path, SCRIPT, "--hooks")
    assert printed == bare[2], "and the same bits"
    handovers = own["futex"] - bare[0]["futex"]
    del own["futex"]
    assert own == {name: count for name, count in bare[0].items() if name != "futex"}
    # A hand-over is a futex call on each side, several for one wake-up where a traced machine is slow (57 for 4 were seen):
    # what makes it none of the steps' is that the other side made as many, and that there are far fewer than steps.
    assert handovers <= 2 * others["futex"] + 10, (handovers, others)
    assert handovers < STEPS / 4, (handovers, others)
    assert others["poll"] + others["connect"] < STEPS / 10
    if daemon != "absent":
        assert peer.ring_fds


def test_twin_a_hook_that_sends_adds_calls_to_every_step(bare, tmp_path, socket_path):
    own, _, printed = _calls_of_1000_steps(tmp_path, "-c", SENDS, SCRIPT)
    assert printed == bare[2]
    assert sum(own.values()) - sum(bare[0].values()) >= 2 * STEPS
