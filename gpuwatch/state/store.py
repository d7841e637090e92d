"""The state: everything the daemon knows, journal first. One thread writes it (intake), others read under its lock."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable

from gpuwatch.state import directories, frames, recovery, reserve, summary, trouble
from gpuwatch.state.findings import Finding, FindingBook
from gpuwatch.state.gpus import Gpus, HostSample
from gpuwatch.state.identity import Hello, Identity
from gpuwatch.state.journal import JOURNAL_BYTES, JournalWriter
from gpuwatch.state.records import DecodeError, Record, decode
from gpuwatch.state.runs import Run
from gpuwatch.state.steps import Step

log = logging.getLogger(__name__)

SUMMARY_SECONDS = 2.0  # an encoding and a rename: 0.6 ms of a run's 3 ms a second, when it was each second
#: Runs kept in memory after their end, oldest forgotten first: their files stay.
MAX_ENDED_RUNS = 64


class RefusedError(Exception):
    """A run that the daemon does not take; the text is for the process that asked."""


class State:
    """Runs, GPUs, host and findings. Take `lock` to read; the methods here take it themselves."""

    def __init__(
        self,
        logdir: str,
        *,
        runs_per_uid: int = 64,
        journal_bytes: int = JOURNAL_BYTES,
        monotonic_ns: Callable[[], int] = time.monotonic_ns,
        wall_seconds: Callable[[], float] = time.time,
    ) -> None:
        self.lock = threading.RLock()
        self.logdir = logdir
        self.runs: dict[str, Run] = {}  # by Run.directory, in order of arrival
        self.gpus = Gpus()
        self.host: HostSample | None = None
        self.findings = FindingBook()
        self.on_step: list[Callable[[Run, Step], None]] = []  # called under the lock, in order, after the step is applied
        self.on_finding: list[Callable[[Run, Finding], None]] = []  # a finding that has just opened or closed
        self.on_worse: list[Callable[[Run, Finding], None]] = []  # an open finding that has grown more severe
        self.undecodable_records = 0
        self._runs_per_uid = runs_per_uid
        self._journal_bytes = journal_bytes
        self._monotonic_ns = monotonic_ns
        self._wall_seconds = wall_seconds
        self._saved_at_ns: dict[str, int] = {}

    def open_run(self, hello: Hello, identity: Identity) -> Run:
        """The run of a process that has said hello: the one that it had (also before the daemon restarted), else a new one.

        Raises RefusedError: too many live runs of this user, or no directory for it.
        """
        with self.lock:
            for run in self.runs.values():
                if run.status == "live" and run.identity == identity and run.hello.ring_id == hello.ring_id:
                    return run
            alive = sum(run.status == "live" and run.identity.uid == identity.uid for run in self.runs.values())
            if alive >= self._runs_per_uid:
                raise RefusedError(f"{alive} live runs of uid {identity.uid} already (limits.runs_per_uid)")
            return self._open_new(hello, identity)

    def ring(self, run: Run, slots: Iterable[tuple[int, int, int, bytes]]) -> None:
        """Records from a process's ring, in order: (sequence, monotonic ns, kind, payload) each. Journal first, then state."""
        with self.lock:
            batch = list(slots)
            if run.journal is not None:
                for sequence, monotonic_ns, kind, payload in batch:
                    if not run.journal.append(run.hello.ring_id, sequence, monotonic_ns, kind, payload):
                        run.counters.add_dropped("journal", 1)
                run.journal.flush(self._monotonic_ns())
            for _, monotonic_ns, kind, payload in batch:
                run.counters.count_record(len(payload))
                try:
                    record = decode(kind, payload, monotonic_ns)
                except DecodeError:
                    self.undecodable_records += 1
                    run.counters.add_dropped("undecodable", 1)
                    continue
                self._apply(run, record)
            trouble.note_kept(run)

    def control(self, run: Run, n: int, record: frames.Control) -> bool:
        """A control message with its counter `n`. False when it was not taken, and so must not count as received.

        It may be acknowledged once `run.acknowledged` has reached n: at once, or when the disk has room again. Raises
        DecodeError for a record that no journal can keep.
        """
        with self.lock:
            now_ns = self._monotonic_ns()
            if run.journal is not None:
                kind = frames.control_kind(record)
                if not run.journal.append(run.hello.ring_id, n, now_ns, kind, frames.encode_control(record)):
                    return False
                run.journal.flush(now_ns)
            self._apply(run, record)
            return True

    def drop(self, run: Run, reason: str, count: int) -> None:
        """Count records that were lost on the way, by reason (wire.DROP_REASONS, overwritten)."""
        with self.lock:
            run.counters.add_dropped(reason, count)
            run.changed = True

    def find(self, run: Run, finding: Finding) -> None:
        """Take in a finding about a run: opened, changed or closed."""
        with self.lock:
            finding.run, finding.rank, finding.directory = run.name, run.rank, run.directory
            opened = self.findings.update(finding)
            run.changed = True
            if opened:
                run.counters.count_finding(finding.rule)
            elif finding.state != "closed":
                for callback in self.on_worse:
                    callback(run, finding)
                return
            if run.journal is not None:
                now_ns = self._monotonic_ns()
                payload = frames.encode_control(finding)
                run.journal.append(run.hello.ring_id, 0, now_ns, frames.KIND_FINDING, payload)
            for callback in self.on_finding:
                callback(run, finding)

    def process_gone(self, run: Run) -> None:
        """The kernel says that the process has ended; what its ring still held was read before."""
        with self.lock:
            self._settled(run, run.lose())
            self.save(run)

    def tick(self) -> None:
        """A few times a second: close silent steps, write what waits for the disk, replace run.json where it is due."""
        with self.lock:
            now_ns = self._monotonic_ns()
            for run in list(self.runs.values()):
                self._settled(run, run.flush(now_ns))
                if run.journal is not None and run.journal.has_pending and run.journal.flush(now_ns):
                    trouble.note_kept(run)
                due = now_ns - self._saved_at_ns.get(run.directory, 0) >= SUMMARY_SECONDS * 1e9
                if run.changed and due:
                    self.save(run)
            self._forget_old()

    def save(self, run: Run) -> None:
        """Replace the run's run.json. A disk that refuses (which the journal says) is tried again a second later."""
        with self.lock:
            now_ns = self._saved_at_ns[run.directory] = self._monotonic_ns()
            if run.journal is not None:
                run.journal.flush(now_ns)  # the checkpoint may not go further than the journal
                trouble.note_kept(run)
            try:
                data = summary.encode(recovery.summarize(run, self.findings.of_run(run.directory), self._wall_seconds()))
                reserve.replace_file(run.place.fd, directories.SUMMARY_NAME, data)
            except OSError as error:
                log.debug("%s: run.json not written: %s", run.directory, error.strerror)
            else:
                run.changed = False

    def close(self) -> None:
        """Flush every journal and run.json. The runs stay as they are: live ones go on with the next daemon."""
        with self.lock:
            for run in self.runs.values():
                if run.journal is not None:
                    run.journal.flush(self._monotonic_ns())
                if run.changed or run.status == "live":  # run.json of what ended long ago keeps the time of its end
                    self.save(run)
                self._release(run)

    def _open_new(self, hello: Hello, identity: Identity) -> Run:
        def is_ours(data: bytes) -> bool:
            known = summary.decode(data)
            return known is not None and known.identity == identity and known.hello.ring_id == hello.ring_id

        def is_our_users(data: bytes) -> bool:
            known = summary.decode(data)
            return known is not None and known.identity.uid == identity.uid

        try:
            place = directories.claim(self.logdir, hello.run, hello.rank, hello.world_size, is_ours, is_our_users)
        except directories.NoRoomError as error:
            raise RefusedError(str(error)) from None
        run = Run(hello, identity, place, self._wall_seconds())
        try:
            journal_fd = directories.open_subdirectory(place.fd, "journal")
            run.journal = JournalWriter(journal_fd, run.preamble, journal_bytes=self._journal_bytes)
        except OSError as error:
            raise RefusedError(f"{place.path}: {error.strerror}") from None
        if place.resumed:
            recovery.resume(run, directories.read_file(place.fd, directories.SUMMARY_NAME), self.findings)
            trouble.note_kept(run)
        reserve.keep(place.fd)
        self.runs[run.directory] = run
        self.save(run)
        return run

    def _apply(self, run: Run, record: Record | frames.Control) -> None:
        self._settled(run, run.observe(record))

    def _settled(self, run: Run, steps: list[Step]) -> None:
        for step in steps:
            for callback in self.on_step:
                callback(run, step)

    def _forget_old(self) -> None:
        ended = [run for run in self.runs.values() if run.status != "live"]
        for run in ended[: max(0, len(ended) - MAX_ENDED_RUNS)]:
            self._release(run)
            del self.runs[run.directory]
            self._saved_at_ns.pop(run.directory, None)
            self.findings.forget(run.directory)

    def _release(self, run: Run) -> None:
        if run.journal is not None:
            run.journal.close(self._monotonic_ns())
            run.journal = None
        reserve.give_back(run.place.fd)
        run.place.close()
