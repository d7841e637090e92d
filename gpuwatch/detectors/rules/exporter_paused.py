"""The run is not being recorded: a part of the daemon that writes files is paused.

## What it means

The journal or the TensorBoard files cannot be written, as a rule because the disk is full or read-only. Metrics and
findings go on, and training is not touched; what is not written while the journal is paused is lost once the ring has gone
round.

## The test

The daemon's component `journal` or `tensorboard` has been down for 5 seconds.

## What to do

Make space in the log directory, or give it back its rights. It goes on by itself within 30 seconds, in a new file.

## When it is wrong

The component speaks for the whole daemon: the disk that refuses may be that of another run.
"""

from __future__ import annotations

from gpuwatch.detectors.moment import Moment
from gpuwatch.detectors.rule import MomentRule, Quiet, Thresholds, Verdict

_WRITERS = ("journal", "tensorboard")


class ExporterPaused(MomentRule[Thresholds]):
    name = "exporter_paused"
    severity = "warning"
    statistic = "parts of the daemon that cannot write"
    action = "Make space in the log directory, or give it back its rights: it goes on by itself."
    open_after = 5
    open_within = 5
    quiet_steps = 5

    def judge(self, moment: Moment) -> Verdict | Quiet:
        paused = {
            name: moment.components[name].error
            for name in _WRITERS
            # without an error it has only not begun yet
            if name in moment.components and not moment.components[name].up and moment.components[name].error
        }
        if not paused:
            return Quiet.FINE
        reasons = "; ".join(f"{name}: {error}" for name, error in paused.items())
        return Verdict(
            len(paused), 0.0, f"The daemon cannot write at step {moment.step}: {reasons}.", first_step=max(1, moment.step)
        )
