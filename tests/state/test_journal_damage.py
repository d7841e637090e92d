"""A journal that a crash, a bad disk or an enemy has damaged: an intact prefix, all later segments, and never an exception."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from gpuwatch_hooks import wire

from gpuwatch.state import frames
from gpuwatch.state.journal import JournalWriter
from gpuwatch.state.journal_reader import JournalReader

RING = 7


def segment(*sequences: int) -> bytes:
    body = b"".join(frames.encode(RING, n, n, wire.KIND_STEP, bytes([n]) * (n % 9)) for n in sequences)
    return frames.SEGMENT_MAGIC + body


def read(path: Path) -> tuple[list[int], JournalReader]:
    reader = JournalReader(path)
    entries = reader.read(10**6)
    assert all(entry.frame.payload == bytes([entry.frame.sequence]) * (entry.frame.sequence % 9) for entry in entries)
    return [entry.frame.sequence for entry in entries], reader


FIRST, LATER = segment(*range(1, 4)), segment(6, 7)


def ends() -> list[int]:
    """Where each frame of FIRST ends."""
    return [len(segment(*range(1, n + 1))) for n in range(4)]


def test_truncated_at_every_offset(tmp_path: Path) -> None:
    (tmp_path / "000002.journal").write_bytes(LATER)
    for length in range(len(FIRST) + 1):
        (tmp_path / "000001.journal").write_bytes(FIRST[:length])
        whole = [n for n in range(1, 4) if ends()[n] <= length]
        sequences, reader = read(tmp_path)
        assert sequences == [*whole, 6, 7], length
        assert reader.skipped_bytes == length - max((ends()[n] for n in whole), default=8 if length >= 8 else 0)
        reader.close()


def test_every_bit_flipped(tmp_path: Path) -> None:
    (tmp_path / "000002.journal").write_bytes(LATER)
    for bit in range(8 * len(FIRST)):
        damaged = bytearray(FIRST)
        damaged[bit // 8] ^= 1 << bit % 8
        (tmp_path / "000001.journal").write_bytes(damaged)
        sequences, reader = read(tmp_path)
        before = [n for n in range(1, 4) if ends()[n] <= bit // 8] if bit // 8 >= 8 else []
        assert sequences == [*before, 6, 7], bit
        reader.close()


def test_without_its_checksum_a_flipped_bit_would_pass(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The twin of the test above: it is the checksum that catches damage."""
    monkeypatch.setattr("gpuwatch.state.frames.zlib.crc32", lambda _data, _start=0: 0)
    damaged = bytearray(segment(1, 2))
    damaged[-1] ^= 1
    (tmp_path / "000001.journal").write_bytes(damaged)
    reader = JournalReader(tmp_path)
    assert len(reader.read()) == 2
    reader.close()


def test_random_bytes(tmp_path: Path) -> None:
    rng = random.Random(1)
    for _ in range(300):
        noise = rng.randbytes(rng.randrange(200))
        (tmp_path / "000001.journal").write_bytes(noise if rng.random() < 0.3 else frames.SEGMENT_MAGIC + noise)
        (tmp_path / "000002.journal").write_bytes(LATER)
        sequences, reader = read(tmp_path)
        assert sequences == [6, 7]
        reader.close()


def test_a_torn_tail_is_waited_for_until_a_later_segment_exists(tmp_path: Path) -> None:
    path = tmp_path / "000001.journal"
    path.write_bytes(FIRST[:-3])
    sequences, reader = read(tmp_path)
    assert sequences == [1, 2]
    assert reader.read() == []
    path.write_bytes(FIRST)
    assert [entry.frame.sequence for entry in reader.read()] == [3]
    assert reader.skipped_bytes == 0
    reader.close()


def test_a_lying_length_allocates_nothing_beyond_the_file(tmp_path: Path) -> None:
    lie = (frames.MAX_FRAME_BYTES).to_bytes(4, "little") + bytes(100)
    (tmp_path / "000001.journal").write_bytes(frames.SEGMENT_MAGIC + lie)
    sequences, reader = read(tmp_path)
    assert sequences == []
    reader.close()


def test_a_planted_link_is_not_followed(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_bytes(FIRST)
    journal = tmp_path / "journal"
    journal.mkdir()
    (journal / "000001.journal").symlink_to(elsewhere)
    writer = JournalWriter(os.open(journal, os.O_RDONLY))
    writer.append(RING, 1, 0, wire.KIND_STEP, b"\x01")
    assert writer.flush(0)
    writer.close(0)
    assert elsewhere.read_bytes() == FIRST
    assert read(journal)[0] == [1]


WRITER = """
    import os, sys, time
    from gpuwatch.state.journal import JournalWriter
    from gpuwatch.state.journal_reader import JournalReader

    path = sys.argv[1]
    writer = JournalWriter(os.open(path, os.O_RDONLY), segment_bytes=20_000)
    reader = JournalReader(path)
    while entries := reader.read():
        for entry in entries:
            writer.mark_durable(entry.frame.ring_id, entry.frame.sequence, is_control=False)
    sequence = writer.durable_sequence.get(7, 0)
    while True:
        batch = sequence % 7 + 1
        for sequence in range(sequence + 1, sequence + batch + 1):
            writer.append(7, sequence, sequence, 1, bytes(sequence % 300))
        writer.flush(0)
        os.write(1, b"%d\\n" % writer.durable_sequence[7])
        time.sleep(0.0005)
"""


def test_kill_nine_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    acknowledged = 0
    sequences: list[int] = []
    rng = random.Random(2)
    reader = JournalReader(tmp_path)
    for _ in range(12):
        process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(WRITER), str(tmp_path)], stdout=subprocess.PIPE)
        assert process.stdout is not None
        try:
            acknowledged = int(process.stdout.readline())  # it has started to write
            time.sleep(rng.uniform(0, 0.05))
        finally:
            process.send_signal(signal.SIGKILL)
        said = process.stdout.read().split(b"\n")[:-1]
        process.wait(timeout=20)
        process.stdout.close()
        acknowledged = int(said[-1]) if said else acknowledged
        sequences += [entry.frame.sequence for entry in reader.read(10**7)]
        assert sequences[-1] >= acknowledged
    reader.close()
    assert sequences == list(range(1, len(sequences) + 1)), "nothing missing, nothing twice"
    assert acknowledged > 200, "the writer must have got somewhere between the kills"
