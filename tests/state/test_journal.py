"""The journal while all goes well: what is written is read, once, in order, across segments, restarts and retention."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from gpuwatch_hooks import wire
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from gpuwatch.state import frames
from gpuwatch.state.journal import JournalWriter, segment_numbers
from gpuwatch.state.journal_reader import JournalReader, Position
from gpuwatch.state.records import Meta, Names

RING = 7


def open_directory(path: Path) -> int:
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY)


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[JournalWriter]:
    made = JournalWriter(open_directory(tmp_path), segment_bytes=400)
    yield made
    if made.directory_fd >= 0:
        made.close(0)


def write(writer: JournalWriter, *sequences: int, size: int = 50) -> None:
    for sequence in sequences:
        assert writer.append(RING, sequence, sequence * 1000, wire.KIND_STEP, bytes([sequence % 256]) * size)
    assert writer.flush(0)


def write_singly(writer: JournalWriter, first: int, last: int) -> None:
    """A batch is never split over segments, so this is what crosses them."""
    for n in range(first, last + 1):
        write(writer, n)


def read_all(reader: JournalReader) -> list[int]:
    return [entry.frame.sequence for entry in reader.read(10**6)]


def test_what_is_written_is_read_as_it_was(tmp_path: Path, writer: JournalWriter) -> None:
    write_singly(writer, 1, 29)
    reader = JournalReader(tmp_path)
    frames_read = [entry.frame for entry in reader.read(10**6)]
    assert [(f.ring_id, f.sequence, f.monotonic_ns, f.kind) for f in frames_read] == [
        (RING, n, 1000 * n, 1) for n in range(1, 30)
    ]
    assert [f.payload for f in frames_read] == [bytes([n]) * 50 for n in range(1, 30)]
    assert len(segment_numbers(writer.directory_fd)) > 3, "the test must cross segments"
    reader.close()


def test_a_reader_follows_a_growing_journal_and_knows_how_far_it_is_behind(tmp_path: Path, writer: JournalWriter) -> None:
    reader = JournalReader(tmp_path)
    assert reader.read() == []
    for n in range(1, 60, 3):
        write(writer, n, n + 1, n + 2)
        assert reader.behind_bytes() > 0
        assert read_all(reader) == [n, n + 1, n + 2]
        assert reader.behind_bytes() == 0
    reader.close()


def test_a_reader_resumes_at_any_position(tmp_path: Path, writer: JournalWriter) -> None:
    write_singly(writer, 1, 29)
    reader = JournalReader(tmp_path)
    for entry in reader.read(10**6):
        resumed = JournalReader(tmp_path, entry.position)
        assert read_all(resumed) == list(range(entry.frame.sequence + 1, 30))
        resumed.close()
    reader.close()


def test_a_batch_is_one_write(tmp_path: Path, writer: JournalWriter, monkeypatch: pytest.MonkeyPatch) -> None:
    write(writer, 1)
    calls = []
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: calls.append(len(data)) or real(fd, data))
    write(writer, *range(2, 5))
    assert len(calls) == 1


def test_a_restart_opens_a_new_segment(tmp_path: Path, writer: JournalWriter) -> None:
    write(writer, 1, 2)
    writer.close(0)
    before = (tmp_path / "000001.journal").read_bytes()
    again = JournalWriter(open_directory(tmp_path))
    write(again, 3)
    assert (tmp_path / "000001.journal").read_bytes() == before
    assert again.segment == 2
    reader = JournalReader(tmp_path)
    assert read_all(reader) == [1, 2, 3]
    reader.close()
    again.close(0)


def test_each_segment_explains_itself_to_a_reader_that_starts_there(tmp_path: Path) -> None:
    def preamble() -> Iterator[tuple[int, int, int, bytes]]:
        for record in (Names("tensor", 1, 0, ("a", "b")), Meta({"precision": "bf16"})):
            yield RING, 5, frames.control_kind(record), frames.encode_control(record)

    writer = JournalWriter(open_directory(tmp_path), preamble, segment_bytes=400)
    write_singly(writer, 1, 29)
    last = segment_numbers(writer.directory_fd)[-1]
    reader = JournalReader(tmp_path, Position(last, 0))
    kinds = [entry.frame.kind for entry in reader.read()]
    assert kinds[:2] == [frames.KIND_NAMES, frames.KIND_META]
    middle = reader.position
    reader.close()
    resumed = JournalReader(tmp_path, middle)
    assert [frame.decode() for frame in resumed.context()] == [Names("tensor", 1, 0, ("a", "b")), Meta({"precision": "bf16"})]
    assert resumed.position == middle
    resumed.close()
    writer.close(0)


def test_durable_marks_are_kept_for_ring_records_and_messages_apart(writer: JournalWriter) -> None:
    writer.append(RING, 9, 0, wire.KIND_STEP, b"")
    writer.append(RING, 3, 0, frames.KIND_META, b"\x80")
    assert (writer.durable_sequence, writer.durable_number) == ({}, {})
    writer.flush(0)
    assert (writer.durable_sequence, writer.durable_number) == ({RING: 9}, {RING: 3})


def test_retention_deletes_the_oldest_and_counts_what_nobody_had_read(tmp_path: Path) -> None:
    writer = JournalWriter(open_directory(tmp_path), segment_bytes=400, journal_bytes=2000)
    writer.passed["tensorboard"] = 4
    write(writer, 1)
    for n in range(2, 60):
        write(writer, n)
    numbers = segment_numbers(writer.directory_fd)
    assert sum((tmp_path / f"{n:06d}.journal").stat().st_size for n in numbers) <= 2000
    assert numbers[0] > 4
    assert writer.trimmed_bytes > writer.trimmed_unread_bytes > 0
    reader = JournalReader(tmp_path, Position(2, 8))
    assert read_all(reader)[-1] == 59
    assert reader.missed_segments == numbers[0] - 2
    reader.close()
    writer.close(0)


def test_retention_that_readers_have_kept_up_with_loses_nothing(tmp_path: Path) -> None:
    writer = JournalWriter(open_directory(tmp_path), segment_bytes=400, journal_bytes=2000)
    reader = JournalReader(tmp_path)
    seen = []
    for n in range(1, 80):
        write(writer, n)
        seen += read_all(reader)
        writer.passed["tensorboard"] = reader.position.segment
    assert seen == list(range(1, 80))
    assert writer.trimmed_bytes > 0
    assert writer.trimmed_unread_bytes == 0
    reader.close()
    writer.close(0)


def test_a_record_that_an_io_error_hid_is_given_out_once(tmp_path: Path) -> None:
    """The writer wrote a frame, was told that it failed, and wrote it again into the next segment."""
    for number, sequences in ((1, (1, 2, 3)), (2, (3, 4))):
        body = b"".join(frames.encode(RING, n, n, wire.KIND_STEP, b"x") for n in sequences)
        (tmp_path / f"{number:06d}.journal").write_bytes(frames.SEGMENT_MAGIC + body)
    reader = JournalReader(tmp_path)
    assert read_all(reader) == [1, 2, 3, 4]
    reader.close()


def test_two_writers_never_share_a_segment(tmp_path: Path) -> None:
    """Two daemons on one log directory: a mistake, and no damage."""
    writers = [JournalWriter(open_directory(tmp_path), segment_bytes=200) for _ in range(2)]
    for n in range(1, 20):
        for ring, writer in enumerate(writers):
            writer.append(ring, n, 0, wire.KIND_STEP, bytes(50))
            assert writer.flush(0)
    reader = JournalReader(tmp_path)
    read = [(entry.frame.ring_id, entry.frame.sequence) for entry in reader.read(10**6)]
    assert sorted(read) == [(ring, n) for ring in range(2) for n in range(1, 20)]
    reader.close()
    for writer in writers:
        writer.close(0)


def test_what_is_appended_while_the_reader_looks_for_a_later_segment_is_not_lost(tmp_path: Path) -> None:
    class Racing(JournalReader):
        """The writer appends to the first segment and begins the second just before the reader lists the directory."""

        def _numbers(self) -> list[int]:
            if self._fd >= 0 and not (tmp_path / "000002.journal").exists():
                with (tmp_path / "000001.journal").open("ab") as file:
                    file.write(frames.encode(RING, 2, 2, wire.KIND_STEP, b"x"))
                body = frames.encode(RING, 3, 3, wire.KIND_STEP, b"x")
                (tmp_path / "000002.journal").write_bytes(frames.SEGMENT_MAGIC + body)
            return super()._numbers()

    (tmp_path / "000001.journal").write_bytes(frames.SEGMENT_MAGIC + frames.encode(RING, 1, 1, wire.KIND_STEP, b"x"))
    reader = Racing(tmp_path)
    assert read_all(reader) == [1, 2, 3]
    reader.close()


def test_an_oversized_record_is_refused_before_it_is_written() -> None:
    with pytest.raises(ValueError, match="frame of"):
        frames.encode(RING, 1, 0, wire.KIND_STEP, bytes(frames.MAX_FRAME_BYTES))


def test_sync_after_close_is_harmless(writer: JournalWriter) -> None:
    write(writer, 1)
    writer.sync()
    writer.close(0)
    writer.sync()


class JournalMachine(RuleBasedStateMachine):
    """Writers come and go, two readers come and go: against a list."""

    def __init__(self) -> None:
        super().__init__()
        import tempfile

        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name)
        self.expected: list[int] = []
        self.seen: list[int] = []
        self.next = 1
        self.writer = JournalWriter(open_directory(self.path), segment_bytes=300)
        self.reader = JournalReader(self.path)

    @rule(count=st.integers(1, 5), size=st.integers(0, 200))
    def write_batch(self, count: int, size: int) -> None:
        numbers = list(range(self.next, self.next + count))
        self.next += count
        write(self.writer, *numbers, size=size)
        self.expected += numbers

    @rule()
    def restart_writer(self) -> None:
        self.writer.close(0)
        self.writer = JournalWriter(open_directory(self.path), segment_bytes=300)

    @rule(garbage=st.binary(max_size=60))
    def crash_writer_with_a_torn_tail(self, garbage: bytes) -> None:
        segment = self.path / f"{self.writer.segment:06d}.journal"
        self.writer.close(0)
        if segment.exists() and garbage:
            # Any tail of an unfinished frame: an impossible length, or one that its bytes do not honour.
            with segment.open("ab") as file:
                file.write(b"\xff\xff" + garbage)
        self.writer = JournalWriter(open_directory(self.path), segment_bytes=300)

    @rule(limit=st.integers(1, 7))
    def read_some(self, limit: int) -> None:
        self.seen += [entry.frame.sequence for entry in self.reader.read(limit)]

    @rule()
    def restart_reader(self) -> None:
        position = self.reader.position
        self.reader.close()
        self.reader = JournalReader(self.path, position)
        self.reader.context()

    @precondition(lambda self: self.expected)
    @invariant()
    def nothing_out_of_order(self) -> None:
        assert self.seen == self.expected[: len(self.seen)]

    def teardown(self) -> None:
        # A new segment ends the wait for the torn one.
        self.restart_writer()
        self.write_batch(1, 1)
        self.seen += [entry.frame.sequence for entry in self.reader.read(10**6)]
        assert self.seen == self.expected
        self.reader.close()
        self.writer.close(0)
        self.folder.cleanup()


TestJournalMachine = JournalMachine.TestCase
TestJournalMachine.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)


def test_a_frame_larger_than_a_piece(tmp_path: Path) -> None:
    """The reader reads 256 KiB at a time: a picture is longer."""
    writer = JournalWriter(open_directory(tmp_path))
    write(writer, 1)
    write(writer, 2, size=700_000)
    write(writer, 3, size=0)
    reader = JournalReader(tmp_path)
    assert [(entry.frame.sequence, len(entry.frame.payload)) for entry in reader.read()] == [(1, 50), (2, 700_000), (3, 0)]
    reader.close()
    writer.close(0)


def test_segments_that_were_deleted_under_a_reader_are_counted(tmp_path: Path, writer: JournalWriter) -> None:
    write_singly(writer, 1, 40)
    numbers = segment_numbers(writer.directory_fd)
    reader = JournalReader(tmp_path)
    first = reader.read(1)
    assert [entry.frame.sequence for entry in first] == [1]
    for number in numbers[1:4]:
        (tmp_path / f"{number:06d}.journal").unlink()
    read = read_all(reader)
    assert reader.missed_segments == 3
    assert (read[0], read[-1]) == (2, 40)
    assert read == sorted(set(read))
    reader.close()


def test_a_reader_holds_one_segment_at_a_time(tmp_path: Path, writer: JournalWriter) -> None:
    write_singly(writer, 1, 40)
    before = len(os.listdir("/proc/self/fd"))
    reader = JournalReader(tmp_path)
    assert read_all(reader) == list(range(1, 41))
    assert len(os.listdir("/proc/self/fd")) == before + 2  # the folder and the last segment
    reader.close()
    reader.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_reader_without_descriptors_goes_on_where_it_was(
    tmp_path: Path, writer: JournalWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_singly(writer, 1, 29)
    reader = JournalReader(tmp_path)
    real = os.open

    def refuse(path: str, *arguments: int, **options: int) -> int:
        if str(path).endswith(".journal"):
            raise OSError(errno.EMFILE, "Too many open files")
        return real(path, *arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(os, "open", refuse)
        assert reader.read() == []
    assert read_all(reader) == list(range(1, 30))
    assert reader.missed_segments == 0
    reader.close()
