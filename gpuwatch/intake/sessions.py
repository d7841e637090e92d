"""One training process: its ring, its run, and how it stands. It outlives connections, and ends with the process."""

from __future__ import annotations

import os
import time

import msgspec
from gpuwatch_hooks import wire

from gpuwatch.config import Limits
from gpuwatch.intake.admission import Admission
from gpuwatch.intake.decode import Bye, Command, Ended, HelloMessage, MediaMessage, Message, SamplingRequest
from gpuwatch.intake.descriptors import DescriptorError
from gpuwatch.intake.media import read_media
from gpuwatch.intake.pace import Pace
from gpuwatch.intake.peers import Peer
from gpuwatch.intake.redaction import clean_text
from gpuwatch.intake.rings import RawRecord, RingReader
from gpuwatch.state.identity import Identity
from gpuwatch.state.records import DecodeError, Names
from gpuwatch.state.runs import Run
from gpuwatch.state.store import State


class Session:
    """Owns `reader` and `pidfd` (readable once the process has ended; -1 where the kernel would not give one)."""

    def __init__(self, identity: Identity, reader: RingReader, run: Run, pidfd: int) -> None:
        self.identity = identity
        self.reader = reader
        self.run = run
        self.pidfd = pidfd
        self.peer: Peer | None = None
        self.received = run.acknowledged  # the last numbered message that was taken, durable or not yet
        self.refused = False  # the state would not take a message: the connection must begin again
        self.faults = 0  # batches in a row that could not be taken
        self.pace = Pace(reader.slot_count, time.monotonic_ns())
        self._drops: dict[str, int] = {}  # the hooks' own counters, as they were last
        self._end: int | None = None  # the last record to read, once nothing may follow
        reader.seek(run.resume_sequence)

    @property
    def drained(self) -> bool:
        """Nothing is left to come: the process has ended or said goodbye, and all it published was read."""
        return self._end is not None and self.reader.sequence >= self._end

    @property
    def is_ending(self) -> bool:
        """Nothing is written to the ring any more."""
        return self._end is not None

    def end(self) -> None:
        """Nothing follows what is in the ring now, whoever else may still hold it."""
        if self._end is None:
            self._end = self.reader.head

    def take(self, state: State, now_ns: int) -> bool:
        """Move one batch from the ring to the state. True when more is waiting than the batch took."""
        reader = self.reader
        self.pace.look(reader.waiting, now_ns)
        lost, damaged = reader.overwritten, reader.damaged
        records = reader.read()
        if reader.overwritten > lost:
            state.drop(self.run, "overwritten", reader.overwritten - lost)
        if reader.damaged > damaged:
            state.drop(self.run, "damaged", reader.damaged - damaged)
        drops = reader.drops()
        if drops != self._drops:
            self._drops = drops
            self._count_drops(state)
        if not records:
            return False
        state.ring(self.run, [_without_secrets(record) for record in records])
        return reader.waiting > 0 and not self.drained

    def _count_drops(self, state: State) -> None:
        for reason, count in self._drops.items():
            known = self.run.counters.dropped.get(reason, 0)
            if count > known:  # the ring's counters and the run's live equally long, so a restart counts nothing twice
                state.drop(self.run, reason, count - known)

    def hear(self, message: Message, fds: list[int], state: State, admission: Admission, limits: Limits) -> int:
        """Take one control message to the state; the bytes of media that it brought. `fds` stay the caller's to close.

        Raises DecodeError and DescriptorError for what a peer must not send.
        """
        if isinstance(message, Bye):
            self.end()
            return 0
        if isinstance(message, HelloMessage | Command | Ended | SamplingRequest):
            raise DecodeError("a message that does not belong here")
        if (len(fds) == 1) != isinstance(message, MediaMessage):
            raise DecodeError("a message that does not belong here")
        if message.n <= self.received or self.refused:  # sent again after a reconnect, or behind one that was not taken
            return 0
        if isinstance(message, MediaMessage):
            return self._hear_media(message, fds[0], state, admission, limits)
        record, folded = message.record, 0
        if isinstance(record, Names):
            record, folded = admission.admit_names(self.run.directory, record)
        elif isinstance(record, tuple):
            record, folded = admission.admit_scalars(self.run.directory, record)
        if folded:
            state.drop(self.run, "over_quota", folded)
        self._count_in(message.n, state.control(self.run, message.n, record))
        return 0

    def _hear_media(self, message: MediaMessage, fd: int, state: State, admission: Admission, limits: Limits) -> int:
        try:
            media = read_media(message, fd, limits.media_bytes)
        except (DecodeError, DescriptorError):
            # Not worth the connection: sent again, the same data would end the next one too.
            state.drop(self.run, "bad_media", 1)
            self._count_in(message.n, taken=True)
            return 0
        tag = admission.admit_tag(self.run.directory, media.tag)
        if tag != media.tag:
            state.drop(self.run, "over_quota", 1)
            media = msgspec.structs.replace(media, tag=tag)
        self._count_in(message.n, state.control(self.run, message.n, media))
        return len(media.data)

    def _count_in(self, n: int, taken: bool) -> None:
        if taken:
            self.received = n
        else:
            self.refused = True

    def close(self) -> None:
        self.reader.close()
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1


def _without_secrets(record: RawRecord) -> RawRecord:
    """The record as the journal may keep it: an event's text is the one thing in a ring that somebody wrote."""
    if record.kind != wire.KIND_EVENT or len(record.payload) <= wire.EVENT_HEAD.size:
        return record
    head, text = record.payload[: wire.EVENT_HEAD.size], record.payload[wire.EVENT_HEAD.size :]
    cleaned = clean_text(text.decode(errors="replace"), wire.MAX_EVENT_TEXT_BYTES).encode()
    while len(cleaned) > wire.MAX_EVENT_TEXT_BYTES:
        cleaned = cleaned.decode()[:-1].encode()
    return record._replace(payload=head + cleaned)
