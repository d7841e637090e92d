"""Out-of-memory errors are told apart from others, and reach the ring before the process ends."""

import subprocess
import sys
import types

import pytest
import torch
from gpuwatch_hooks.exhaustion import text_of

from tests.hooks.recording import recording


def of(raise_it):
    try:
        raise_it()
    except BaseException as error:
        return text_of(error)
    return "nothing was raised"


def test_the_cpu_allocators_own_error():
    text = of(lambda: torch.empty(1 << 60, dtype=torch.uint8))
    assert text is not None
    assert "allocate memory" in text


def test_pythons():
    assert of(lambda: bytearray(1 << 62)) == "MemoryError"


@pytest.mark.parametrize("error", [RuntimeError("shapes do not fit"), ValueError("out of memory"), KeyboardInterrupt()])
def test_other_errors_are_none(error):
    assert text_of(error) is None


def test_torchs_own_class():
    kind = getattr(torch, "OutOfMemoryError", None) or torch.cuda.OutOfMemoryError
    assert text_of(kind("CUDA out of memory. Tried to allocate 2 GiB.\nMore")) == "CUDA out of memory. Tried to allocate 2 GiB."


SCRIPT = """
import sys
from gpuwatch_hooks import session
import torch
s = session.current()
s.install()
weight = torch.nn.Parameter(torch.zeros(3))
optimizer = torch.optim.SGD([weight], lr=0.1)
weight.grad = torch.ones(3)
optimizer.step()
write = s.write

def telling(kind, head, body=b""):
    print("kind", kind, bytes(body).decode() if kind == 4 else "")
    return write(kind, head, body)

s.write = telling
torch.empty(1 << 60, dtype=torch.uint8)
"""


def test_it_is_told_before_the_end(socket_path):
    result = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=100, check=False)
    assert result.returncode == 1
    assert "allocate memory" in result.stderr
    told = [line for line in result.stdout.splitlines() if line.startswith("kind")]
    assert "allocate memory" in told[0]
    assert [line.split()[1] for line in told] == ["4", "5"], "the event, then the end"


def test_failures_that_the_loop_caught_are_counted(monkeypatch):
    """The probe against torch's own counter, on a device that this machine lacks: its numbers are given to it."""
    from gpuwatch_hooks.probes.memory import MemoryProbe

    counts = iter([0, 0, 2])
    one = {"current": 1, "peak": 1}

    def stats(_index):
        return {"allocated_bytes": {"all": one}, "reserved_bytes": {"all": one}, "num_ooms": next(counts)}

    with recording() as session:
        probe = next(probe for probe in session.recorder.probes if isinstance(probe, MemoryProbe))
        monkeypatch.setattr(torch.cuda, "_initialized", True)
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
        properties = types.SimpleNamespace(name="H100", total_memory=1, major=9, minor=0)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
        monkeypatch.setattr(torch._C, "_cuda_memoryStats", stats, raising=False)
        weight = torch.nn.Parameter(torch.zeros(3))
        optimizer = torch.optim.SGD([weight], lr=0.1)
        part = session.recorder.open_part(optimizer)
        for part.step in (1, 2, 3):
            probe.after(part)
    assert [(event.step, event.text) for event in session.events("out_of_memory")] == [
        (3, "torch's allocator on device 0 failed 2 time(s), and the loop went on")
    ]
