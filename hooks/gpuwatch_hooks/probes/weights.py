"""Weights before the update: their norm and their histogram, as often as the governor allows."""

import time

from ..reading import Reading

_now = time.perf_counter_ns


class WeightsProbe:
    """Measured together with the update ratio, so that both speak of the same step."""

    name = "weights"

    def install(self, recorder):
        self._recorder = recorder

    def before(self, part):
        recorder, entry = self._recorder, part.entry
        places = range(len(entry.parameters))
        reading = Reading()
        began = _now()
        if recorder.due("update_ratio", entry):
            reading.measure(part, places, entry.parameters)
            recorder.governor.spent("update_ratio", _now() - began)
            part.at_end(lambda done: _finish(done, reading))
        began = _now()
        if recorder.session.settings.histograms and recorder.due("histograms", entry):
            reading.distribute(part, places, entry.parameters)
            recorder.governor.spent("histograms", _now() - began)
            part.at_end(lambda done: _distribute(done, reading))


def _distribute(part, reading):
    if reading.histograms:
        part.add_histograms("weight", reading.buckets(part.tensors))


def _finish(part, reading):
    if not reading.entries:
        return
    part.set("weight_norm", reading.norm())
    part.add_rows("weight", *reading.cells(part.tensors))
