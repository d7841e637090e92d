"""Gradients: their norm at every step, per-tensor statistics and histograms when the governor allows.

Read at the optimizer's step pre-hook, the one place where they are complete: reduced over ranks (DDP), accumulated over
micro-batches, unscaled by GradScaler. What is read is the gradient before clipping, so a clip function that runs earlier
has them measured first (clipping.py calls `measure`); the norm after clipping is measured or derived here.
"""

from ..reading import Reading


class Gradients:
    """The gradients of one part: their reading, and what tells whether they have been changed since."""

    __slots__ = ("after", "backwards", "clip", "detailed", "reading", "turn", "versions")

    def __init__(self, backwards, turn, selection):
        self.turn = turn  # steps that the optimizer had taken before
        self.detailed = False  # whether every column was due at this step
        self.reading = Reading(selection)
        self.backwards = backwards
        self.versions = None  # when a clip function had them measured: as they were then
        self.clip = None
        self.after = None  # a second reading, of what clipping left


class GradientsProbe:
    """See the module."""

    name = "gradients"

    def install(self, recorder):
        """Nothing to patch: the recorder's step hooks call this probe."""
        self._recorder = recorder
        self._said = set()
        self._told_sharded = False

    def before(self, part):
        """Measure what the optimizer is about to use, or see what has become of what a clip function had measured."""
        if part.closure_calls is None:  # otherwise the gradients of this step do not exist yet
            self._see(part)

    def _see(self, part):
        measured = part.gradients
        if measured is None or measured.backwards != self._recorder.backwards:
            self.measure(part)
        elif measured.versions is not None:
            now, clip = versions(part.entry), measured.clip
            # where a clip was the last to change them, clipping.py knows the coefficient: nothing needs to be read again
            if now != measured.versions and (clip is None or clip.versions != now):
                self._look_again(part)

    def after(self, part):
        """Closures: the gradients of the last evaluation. Then leave the values to be put together."""
        if part.closure_calls is not None:
            part.set("closure_calls", float(part.closure_calls))
            self._see(part)
        if part.gradients is not None:
            part.at_end(self._finish)

    def begin(self, entry):
        """Gradients of an entry of which nothing is measured yet."""
        return Gradients(self._recorder.backwards, entry.steps, self._recorder.selection)

    def measure(self, part):
        """Read the gradients of the part's optimizer as they are now, in true units."""
        recorder, entry = self._recorder, part.entry
        scaling = recorder.by_name["loss_scale"]
        measured = part.gradients = self.begin(entry)
        places, tensors = present(entry)
        part.fields["tensors_without_gradient"] = float(lacking(entry)) if len(tensors) < len(entry.parameters) else 0.0
        if not tensors:
            return
        reading, settings = measured.reading, recorder.session.settings
        rows = measured.detailed = "layers" in part.due
        reading.take(
            part,
            places,
            tensors,
            scaling.to_true_units(entry),
            scaling.flush_threshold(entry),
            rows=rows,
            histograms=settings.histograms and "histograms" in part.due,
            spent=recorder.governor.spent,
        )
        if reading.unreadable:
            self._say(entry, reading.unreadable)
        if (reading.sharded or entry.sharded) and not self._told_sharded:
            # Adding the ranks' squares up would take a collective, which other ranks may not be ready for: the norms are
            # this rank's part, and whoever reads them must know.
            self._told_sharded = True
            recorder.session.meta({"sharded": True})

    def _look_again(self, part):
        """Something has changed the gradients since they were measured: clipping, or unscaling after a clip."""
        measured, entry = part.gradients, part.entry
        places, tensors = present(entry)
        if tensors:
            measured.after = Reading(self._recorder.selection)
            measured.after.take(part, places, tensors, self._recorder.by_name["loss_scale"].to_true_units(entry))

    def _finish(self, part):
        measured = part.gradients
        reading = measured.reading
        fields = part.fields
        if not reading:
            if reading.unreadable:  # gradients there were: without a norm this step must not look as if there were none
                fields.pop("tensors_without_gradient", None)
            return  # there was no gradient, which is not a gradient of zero
        fields["grad_norm"] = norm = reading.norm()
        fields["grad_nonfinite_count"] = float(sum(reading.nonfinite.values())) if reading.nonfinite else 0.0
        if measured.after is not None:
            clipped = measured.after.norm()
            if measured.clip is not None or abs(clipped - norm) > 1e-6 * norm:
                part.set("grad_norm_clipped", clipped)
        shares = reading.shares()
        if shares is not None:
            part.set("grad_absmax", shares[0])
            part.set("grad_zero_ratio", shares[1])
            if shares[2] is not None:
                part.set("grad_underflow_ratio", shares[2])
        every = self._recorder.session.settings.every
        if measured.detailed or measured.turn % self._recorder.governor.norms_interval(every) == 0:
            part.add_rows("gradient", *reading.cells(part.tensors))
        if reading.histograms:
            part.add_histograms("gradient", reading.buckets(part.tensors))

    def _say(self, entry, unreadable):
        """Name tensors that cannot be read, once."""
        for place, reason in unreadable.items():
            name = entry.names[place] if place < len(entry.names) else str(place)
            if name not in self._said:
                self._said.add(name)
                self._recorder.session.event("notice", self._recorder.iteration, 0.0, "%s is not measured: %s" % (name, reason))


def present(entry):
    """(places, gradients) of the entry's tensors that have one."""
    gradients = [parameter.grad for parameter in entry.parameters]
    tensors = [gradient for gradient in gradients if gradient is not None]
    if len(tensors) == len(gradients):
        return range(len(gradients)), tensors
    return [place for place, gradient in enumerate(gradients) if gradient is not None], tensors


def lacking(entry):
    """How many of the entry's tensors have no gradient and want one: a frozen tensor lacks nothing."""
    return sum(1 for parameter in entry.parameters if parameter.grad is None and parameter.requires_grad)


def versions(entry):
    """How often each gradient was changed in place, with its identity: equal only when nothing touched any of them."""
    gradients = [gradient for gradient in [p.grad for p in entry.parameters] if gradient is not None]
    return list(map(id, gradients)), [gradient._version for gradient in gradients]
