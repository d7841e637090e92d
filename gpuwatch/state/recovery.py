"""A run to its run.json and back: the checkpoint, then whatever the journal holds behind it."""

from __future__ import annotations

import copy

from gpuwatch.state import beginning, summary, trouble
from gpuwatch.state.findings import Finding, FindingBook
from gpuwatch.state.frames import Frame
from gpuwatch.state.identity import ourselves
from gpuwatch.state.journal import JournalWriter
from gpuwatch.state.journal_reader import JournalReader, Position
from gpuwatch.state.records import DecodeError, Scalar
from gpuwatch.state.runs import Run
from gpuwatch.state.summary import Checkpoint, RunSummary, jsonable


def summarize(run: Run, findings: list[Finding], wall_seconds: float) -> RunSummary:
    """The run as run.json keeps it."""
    return RunSummary(
        run=run.name,
        directory=run.directory,
        rank=run.rank,
        world_size=run.world_size,
        attempt=run.attempt,
        identity=run.identity,
        hello=run.hello,
        status=run.status,
        end_reason=run.end_reason,
        facts={key: jsonable(value) if isinstance(value, float) else value for key, value in run.facts.items()},
        started_wall_seconds=run.started_wall_seconds,
        updated_wall_seconds=wall_seconds,
        step=run.last_step,
        values={name: jsonable(value) for name, value in run.values.items()},
        learning_rates=[jsonable(rate) for rate, _ in run.learning_rates],
        counters=run.counters,
        scalars={tag: (scalar.step, jsonable(scalar.value)) for tag, scalar in run.scalars.items()},
        tensors=len(run.tensors.names),
        parameters=sum(run.tensors.numels),
        findings=findings,
        checkpoint=_checkpoint(run),
        kept_step=run.kept_step if trouble.incomplete(run) else None,
        trouble=trouble.of(run),
        daemon=ourselves(),
        recent={name: [jsonable(v) for v in run.windows[name].means(summary.RECENT_POINTS)] for name in summary.RECENT},
    )


def _checkpoint(run: Run) -> Checkpoint | None:
    """Where a later daemon may go on: only between steps, and only when the journal holds all that was applied."""
    if run.journal is not None and run.merger.is_idle and not run.journal.has_pending:
        run.checkpoint = Checkpoint(
            segment=run.journal.segment,
            offset=run.journal.offset,
            last_step=run.last_step,
            counters=copy.deepcopy(run.counters),
            step_duration_counts=list(run.durations.counts),
            step_duration_sum_seconds=run.durations.sum_seconds,
            sequences=dict(run.journal.durable_sequence),
            numbers=dict(run.journal.durable_number),
            courses={name: course.copy() for name, course in run.courses.items()},
        )
    return run.checkpoint


def resume(run: Run, data: bytes, findings: FindingBook) -> None:
    """Bring a new Run to where the daemon before us left it: run.json's checkpoint, then the journal behind it."""
    journal = run.journal
    if journal is None:
        return
    known = summary.decode(data)
    position = _restore(run, known, journal, findings) if known is not None else Position()
    reader = JournalReader(journal.directory_fd, position)
    try:
        for frame in reader.context():
            _replay(run, frame, findings)
        while entries := reader.read():
            for entry in entries:
                if not entry.frame.is_control and entry.frame.ring_id == run.hello.ring_id:
                    # A number that is missing was lost before the crash, and counted only in the memory of that daemon.
                    gap = entry.frame.sequence - journal.durable_sequence.get(entry.frame.ring_id, 0) - 1
                    run.counters.add_dropped("overwritten", gap)
                _replay(run, entry.frame, findings)
                journal.mark_durable(entry.frame.ring_id, entry.frame.sequence, entry.frame.is_control)
    finally:
        reader.close()
    run.first_steps = [step for step in beginning.first_steps(journal.directory_fd) if step.step <= run.last_step]


def _restore(run: Run, known: RunSummary, journal: JournalWriter, findings: FindingBook) -> Position:
    """What run.json knows, and from where on the journal knows better."""
    run.started_wall_seconds = known.started_wall_seconds
    run.facts = dict(known.facts)
    for tag, (step, value) in known.scalars.items():
        run.scalars[tag] = Scalar(tag, step, summary.number(value), run.hello.monotonic_ns)
    for finding in known.findings:
        findings.restore(finding)
    checkpoint = known.checkpoint
    if checkpoint is None or journal.segment_bytes(checkpoint.segment) < checkpoint.offset:
        return Position()  # a power failure kept run.json and lost the end of the journal
    run.values = {name: summary.number(value) for name, value in known.values.items()}
    run.counters = checkpoint.counters
    run.durations.counts[:] = checkpoint.step_duration_counts
    run.durations.sum_seconds = checkpoint.step_duration_sum_seconds
    run.courses.update(checkpoint.courses)
    run.merger.last_step = checkpoint.last_step
    run.merger.late_parts = checkpoint.counters.dropped.get("late", 0)
    for ring_id, sequence in checkpoint.sequences.items():
        journal.mark_durable(ring_id, sequence, is_control=False)
    for ring_id, number in checkpoint.numbers.items():
        journal.mark_durable(ring_id, number, is_control=True)
    return Position(checkpoint.segment, checkpoint.offset)


def _replay(run: Run, frame: Frame, findings: FindingBook) -> None:
    try:
        record = frame.decode()
    except DecodeError:
        return
    if isinstance(record, Finding):
        if record.state != "closed":
            run.counters.count_finding(record.rule)
        findings.restore(record)
        return
    if not frame.is_control:
        run.counters.count_record(len(frame.payload))
    run.observe(record)
