"""The hooks add no system call to a training step: each would give up the GIL, and beside a busy thread wait 5 ms for it."""

import collections
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

STEPS = 200
#: malloc's own, of which a run that is some hundred steps longer has a few more.
MEMORY = {"brk", "mmap", "munmap", "madvise", "mremap"}


def calls(tmp_path, *options):
    """({system call: times} of the steps without hooks, the same with them), of the training thread alone."""
    trace = tmp_path / "trace"
    program = [sys.executable, str(Path(__file__).with_name("quiet_steps.py")), str(STEPS), *options]
    result = subprocess.run(["strace", "-o", str(trace), *program], capture_output=True, text=True, timeout=100, check=False)
    if "ptrace" in result.stderr and "not permitted" in result.stderr:
        pytest.skip("this machine does not let a process be traced")
    assert result.returncode == 0, result.stderr
    stretches, marks = [collections.Counter(), collections.Counter()], 0
    for line in trace.read_text().splitlines():
        name = line.partition("(")[0]
        if name == "getppid":
            marks += 1
        elif marks in (1, 3):
            stretches[marks // 2][name] += 1
    assert marks == 4
    return stretches


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_no_system_call_in_a_step(tmp_path):
    plain, hooked = calls(tmp_path)
    assert {name: count for name, count in hooked.items() if name not in MEMORY} == {
        name: count for name, count in plain.items() if name not in MEMORY
    }
    assert sum(hooked.values()) <= sum(plain.values()) + STEPS // 20


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_one_system_call_a_record_would_be_seen(tmp_path):
    """The twin with the protection off."""
    _, hooked = calls(tmp_path, "--noisy")
    assert hooked["getuid"] >= STEPS
