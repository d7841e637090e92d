"""How busy a run's GPUs are while it makes steps, taken in once a second, for `gpuwatch advise`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gpuwatch.state import activity

if TYPE_CHECKING:
    from gpuwatch.detectors.moment import Moment
    from gpuwatch.state.runs import Run

#: Readings while no step was made, in a validation pass or at the end, say nothing of the steps.
_LATEST_STEP_SECONDS = 5.0


def note(run: Run, moment: Moment) -> None:
    """One second more, under the state's lock."""
    age = moment.step_age_seconds
    if moment.status != "live" or age is None or age > _LATEST_STEP_SECONDS:
        return
    told = [device for device in moment.devices if device.up and device.value("tensor_active_ratio") is not None]
    if not told:
        return
    tensor, multiprocessor = (
        sum(device.value(name) or 0.0 for device in told) / len(told) for name in ("tensor_active_ratio", "sm_active_ratio")
    )
    known = activity.of(run.facts) or activity.NONE
    run.facts = run.facts | known.with_second(tensor, multiprocessor).facts()  # a new dict: rules read the old one unlocked
