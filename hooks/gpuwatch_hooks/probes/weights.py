"""Weights before the update: their norm and their histogram, as often as the governor allows."""

import time

from ..reading import Reading

_now = time.perf_counter_ns


class WeightsProbe:
    """Measured together with the update ratio, so that both speak of the same step."""

    name = "weights"
    sampled = True

    def install(self, recorder):
        self._recorder = recorder

    def before(self, part):
        recorder, entry = self._recorder, part.entry
        norms = "update_ratio" in part.due
        histograms = recorder.session.settings.histograms and "histograms" in part.due
        if not norms and not histograms:
            return
        places, reading = range(len(entry.parameters)), Reading(recorder.selection)
        spent = recorder.governor.spent
        if norms:
            began = _now()
            apart = []  # what the histograms took
            reading.take(
                part,
                places,
                entry.parameters,
                histograms=histograms,
                spent=lambda family, ns: (apart.append(ns), spent(family, ns)),
            )
            spent("update_ratio", _now() - began - sum(apart))
            part.at_end(lambda done: _finish(done, reading))
        else:
            began = _now()
            reading.distribute(part, places, entry.parameters)
            spent("histograms", _now() - began)
        if histograms:
            part.at_end(lambda done: _distribute(done, reading))


def _distribute(part, reading):
    if reading.histograms:
        part.add_histograms("weight", reading.buckets(part.tensors))


def _finish(part, reading):
    if not reading:
        return
    part.set("weight_norm", reading.norm())
    part.add_rows("weight", *reading.cells(part.tensors))
