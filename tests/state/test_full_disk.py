"""A disk that refuses: nothing crashes, nothing unwritten is acknowledged, and a new segment goes on when there is room."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from gpuwatch_hooks import wire

from gpuwatch.state import frames
from gpuwatch.state.journal import MAX_PENDING_BYTES, RETRY_NS, JournalWriter
from gpuwatch.state.journal_reader import JournalReader

RING = 7
FULL_DISK = """
import os, sys
from pathlib import Path
from gpuwatch.state.journal import RETRY_NS, JournalWriter
from gpuwatch.state.journal_reader import JournalReader

root = Path(sys.argv[1])
(root / "filler").write_bytes(bytes(100_000))
writer = JournalWriter(os.open(root, os.O_RDONLY))
now, sequence, durable = 0, 0, []
while not writer.paused:
    sequence += 1
    writer.append(7, sequence, now, 1, bytes(1000))
    writer.flush(now)
assert writer.errors == {"ENOSPC": 1}, writer.errors
assert writer.durable_sequence[7] < sequence
for _ in range(50):  # the state lives on, and more arrives
    sequence += 1
    writer.append(7, sequence, now, 1, bytes(1000))
    assert not writer.flush(now)
now += RETRY_NS
assert not writer.flush(now), "still full"
segments = sorted(path.name for path in root.glob("*.journal"))
for _ in range(20):
    now += RETRY_NS
    assert not writer.flush(now)
assert sorted(path.name for path in root.glob("*.journal")) == segments, "attempts leave nothing behind"
(root / "filler").unlink()
now += RETRY_NS
assert writer.flush(now)
assert writer.durable_sequence[7] == sequence
assert not writer.paused
reader = JournalReader(root)
assert [entry.frame.sequence for entry in reader.read(10**6)] == list(range(1, sequence + 1))
assert reader.position.segment == writer.segment > 1
print("recovered")
"""


@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs unshare to mount a small file system")
def test_a_full_file_system(tmp_path: Path) -> None:
    mounted = 'mount -t tmpfs -o size=256k none "$1" && exec "$2" -c "$3" "$1"'
    command = ["unshare", "-rm", "sh", "-c", mounted, "sh", str(tmp_path), sys.executable, FULL_DISK]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if "unshare" in done.stderr or "mount" in done.stderr:
        pytest.skip(f"no user namespace here: {done.stderr.strip()}")
    assert done.stdout == "recovered\n", done.stderr


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[JournalWriter]:
    made = JournalWriter(os.open(tmp_path, os.O_RDONLY))
    yield made
    made.close(10**15)


def append(writer: JournalWriter, sequence: int, size: int = 100) -> bool:
    return writer.append(RING, sequence, 0, wire.KIND_STEP, bytes(size))


def test_a_short_write_acknowledges_what_is_whole(tmp_path: Path, writer: JournalWriter) -> None:
    """A file size limit makes the kernel write a part, as a disk does that fills up in mid-batch."""
    import resource

    append(writer, 1)
    assert writer.flush(0)
    frame = writer.offset - len(frames.SEGMENT_MAGIC)
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (writer.offset + 2 * frame + 5, old[1]))
        for sequence in (2, 3, 4, 5):
            append(writer, sequence)
        assert not writer.flush(0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, handler)
    assert writer.durable_sequence[RING] == 3
    assert writer.has_pending
    assert not writer.flush(RETRY_NS - 1), "not before it is time to try again"
    assert writer.flush(RETRY_NS)
    assert writer.durable_sequence[RING] == 5
    reader = JournalReader(tmp_path)
    assert [entry.frame.sequence for entry in reader.read()] == [1, 2, 3, 4, 5]
    reader.close()


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes to directories that forbid it")
def test_a_directory_that_may_not_be_written(tmp_path: Path, writer: JournalWriter) -> None:
    tmp_path.chmod(0o500)
    append(writer, 1)
    assert not writer.flush(0)
    tmp_path.chmod(0o700)
    assert writer.errors == {"EACCES": 1}
    assert writer.flush(RETRY_NS)


def test_a_directory_that_is_gone(tmp_path: Path) -> None:
    folder = tmp_path / "journal"
    folder.mkdir()
    writer = JournalWriter(os.open(folder, os.O_RDONLY))
    folder.rmdir()
    append(writer, 1)
    assert not writer.flush(0)
    assert writer.errors == {"ENOENT": 1}
    writer.close(0)


def test_what_waits_is_bounded_and_what_is_refused_is_counted(writer: JournalWriter, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: object, **_options: object) -> int:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr("gpuwatch.state.journal.os.open", refuse)
        taken = sum(append(writer, n, 100_000) for n in range(1, 200))
    assert 0 < taken * 100_000 <= MAX_PENDING_BYTES
    assert writer.refused_records == 199 - taken
    assert writer.errors == {"EIO": 1}
    assert writer.flush(RETRY_NS)
    assert writer.durable_sequence[RING] == taken
    assert append(writer, 200)


def test_one_record_larger_than_what_may_wait_is_taken(writer: JournalWriter) -> None:
    assert append(writer, 1)
    assert append(writer, 2, 2 * MAX_PENDING_BYTES - 1000)
    assert writer.flush(0)
    assert writer.durable_sequence[RING] == 2


SUMMARY_ON_A_FULL_DISK = """
import json, os, sys, time
from pathlib import Path
from gpuwatch_hooks import wire
from gpuwatch.state.identity import Hello, Identity
from gpuwatch.state.store import State
from tests.state.recorded import slots, step_payload

root = Path(sys.argv[1])
state = State(str(root / "runs"))
hello = Hello(run="x", token="t", rank=0, world_size=1, ring_id=1, monotonic_ns=1, wall_ns=1)
run = state.open_run(hello, Identity(os.geteuid(), os.getpid(), 5))
first_blocks_bytes = (root / "runs/x/run.json").stat().st_blocks * 512
fields = ("loss", "grad_norm", "update_ratio", "weight_norm")
steps = [(wire.KIND_STEP, step_payload(step, dict.fromkeys(fields, 1 / step))) for step in range(1, 401)]
try:
    (root / "ballast").write_bytes(bytes(1 << 20))
except OSError:
    pass
for first in (0, 200):
    state.ring(run, slots(steps[first : first + 200], first + 1))
    state.save(run)
    known = json.loads((root / "runs/x/run.json").read_text())
    assert (known["status"], known["step"], known["kept_step"]) == ("live", first + 200, 0), known
outgrown = len(json.dumps(known)) > first_blocks_bytes
assert outgrown, "or this would show nothing"
state.close()
assert sorted(os.listdir(root / "runs/x")) == ["journal", "run.json"]
print("told")
"""


@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs unshare to mount a small file system")
def test_how_the_run_stands_is_told_on_a_disk_that_filled_up_in_its_first_steps(tmp_path: Path) -> None:
    mounted = 'mount -t tmpfs -o size=1m none "$1" && exec "$2" -c "$3" "$1"'
    command = ["unshare", "-rm", "sh", "-c", mounted, "sh", str(tmp_path), sys.executable, SUMMARY_ON_A_FULL_DISK]
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=root)
    if "unshare" in done.stderr or "mount:" in done.stderr:
        pytest.skip(f"no user namespace here: {done.stderr.strip()}")
    assert done.stdout == "told\n", done.stderr
