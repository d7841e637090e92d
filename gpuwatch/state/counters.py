"""What only ever grows in a run: steps, seconds, losses on the way."""

from __future__ import annotations

import msgspec

from gpuwatch.state.steps import Step

#: Claims beyond these are lies or damage: 30 years in one step, more entries than any model has.
_MAX_SECONDS = 1e9
_MAX_COUNT = 1e15
PHASES = ("data", "forward", "backward", "optimizer", "other")


class Counters(msgspec.Struct):
    """Totals since the run began; they survive a restart of the daemon in run.json."""

    steps: int = 0
    records: int = 0
    record_bytes: int = 0
    dropped: dict[str, int] = {}  # reason -> records: wire.DROP_REASONS, overwritten, undecodable, late, journal
    nonfinite_gradients: int = 0  # entries
    loss_scale_backoffs: int = 0
    skipped_steps: int = 0
    hook_seconds: float = 0.0
    phase_seconds: dict[str, float] = {}
    micro_batches: int = 0
    events: dict[str, int] = {}  # code -> times
    findings: dict[str, int] = {}  # rule -> episodes

    def add_step(self, step: Step) -> None:
        """Count one final step."""
        values = step.values
        self.steps += 1
        self.nonfinite_gradients += _count(values.get("grad_nonfinite_count"))
        self.loss_scale_backoffs += _count(values.get("loss_scale_backoffs"))
        self.micro_batches += _count(values.get("micro_batches"))
        self.skipped_steps += 1 if values.get("skipped", 0.0) > 0.0 else 0
        self.hook_seconds += seconds(values.get("hook_seconds"))
        for phase in PHASES:
            took = values.get(phase + "_seconds")
            if took is not None:
                self.phase_seconds[phase] = self.phase_seconds.get(phase, 0.0) + seconds(took)

    def count_record(self, size_bytes: int) -> None:
        self.records += 1
        self.record_bytes += size_bytes

    def count_event(self, code: str) -> None:
        self.events[code] = self.events.get(code, 0) + 1

    def count_finding(self, rule: str) -> None:
        self.findings[rule] = self.findings.get(rule, 0) + 1

    def add_dropped(self, reason: str, count: int) -> None:
        if count > 0:
            self.dropped[reason] = self.dropped.get(reason, 0) + count


def seconds(value: float | None) -> float:
    """A duration that a counter may take: what a process claims may be negative, NaN or absurd."""
    return value if value is not None and 0.0 < value < _MAX_SECONDS else 0.0


def _count(value: float | None) -> int:
    return int(value) if value is not None and 0.0 < value < _MAX_COUNT else 0
