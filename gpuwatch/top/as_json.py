"""A reading as `gpuwatch top --json` prints it: `/api/gpus` of the daemon, and the training jobs on top."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from gpuwatch.state.summary import jsonable
from gpuwatch.top import job_lines

if TYPE_CHECKING:
    from gpuwatch.top.reading import Job, Reading

_FIELDS = ("loss", "grad_norm", "loss_scale")


def tree(reading: Reading) -> dict[str, Any]:
    """Units are in the names; values that are not finite are strings, since JSON has none."""
    return {
        "source": reading.source,
        "note": reading.note,
        **msgspec.to_builtins(reading.node, str_keys=True),
        "jobs": [_job(job, reading) for run in job_lines.shown(reading) for job in run],
    }


def _job(job: Job, reading: Reading) -> dict[str, Any]:
    known = job.summary
    values = {name: job.value(name) for name in _FIELDS}
    return {
        "run": known.run,
        "rank": known.rank,
        "world_size": known.world_size,
        "pid": known.identity.pid,
        "status": job.status,
        "gpus": job_lines.gpus_of([job], reading),
        "step": known.step,
        "steps_per_second": job.steps_per_second,
        **{name: None if value is None else jsonable(value) for name, value in values.items()},
        "phase_ratios": job_lines.phase_shares(job),
        "findings": [
            {"rule": finding.rule, "severity": finding.severity, "layer": finding.layer, "summary": finding.summary}
            for finding, _ in job_lines.active([job])
        ],
    }
