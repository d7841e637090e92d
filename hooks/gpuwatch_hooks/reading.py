"""Statistics of an optimizer's tensors, measured kernel by kernel, device by device."""

import sys
import time

from .kernels import choose, chunks
from .kernels.dense import readable
from .measured import Measured

_now = time.perf_counter_ns


class Reading(Measured):
    """Measures the tensors of one entry; its values arrive when the part is written.

    `selection` knows whether a device has a fused kernel, which delivers everything in one pass; None: plain kernels only.
    """

    def __init__(self, selection=None):
        super().__init__()
        self.unreadable = {}  # place -> reason
        self.sharded = False  # some tensors are this rank's part of a DTensor
        self._selection = selection

    def take(self, part, places, tensors, scale=None, threshold=None, rows=False, histograms=False, spent=None):
        """The norms of `tensors`, and if asked for their `rows` and `histograms`, in as few passes as their device allows.

        `scale`: what to multiply them with, `threshold`: what fp16 would lose; 0-d tensors or None. `spent(family, ns)`
        hears what rows and histograms took where they are passes of their own.
        """
        if self._selection is not None and tensors and self._selection.concerns(tensors[0]):
            left = self._take_fused(part, places, tensors, scale, threshold, histograms)
            if left is None:
                return
            places, tensors = left
            if not tensors:
                return
        began = _now()
        if not rows or self.detail(part, places, tensors, scale, threshold):
            self.measure(part, places, tensors, scale)
        if rows and spent is not None:
            spent("layers", _now() - began)
        if histograms:
            began = _now()
            self.distribute(part, places, tensors, scale)
            if spent is not None:
                spent("histograms", _now() - began)

    def _take_fused(self, part, places, tensors, scale, threshold, histograms):
        """Launch the fused kernels that there are; (places, tensors) that none of them reads, or None when nothing is left."""
        if part.entry.uniform and _plain(tensors):
            try:
                if len(set(map(_device_index(), tensors))) == 1:
                    device = tensors[0].device
                    fused = self._selection.fused(device)
                    if fused is None:
                        return places, tensors
                    if self._launch(part, fused, places, tensors, scale, threshold, histograms):
                        return None
            except RuntimeError:
                part.entry.uniform = False
        groups, left, rest = {}, [], []
        for place, tensor in zip(places, tensors):
            dense, reason = readable(tensor)
            fused = self._selection.fused(dense.device) if reason is None else None
            if fused is None or not fused.fits(dense):
                left.append(place)
                rest.append(tensor)
                continue
            self.sharded = self.sharded or hasattr(tensor, "to_local")
            some, those, kept = groups.setdefault(fused, ([], [], []))
            some.append(place)
            those.append(dense)
            kept.append(tensor)
        for fused, (some, those, kept) in groups.items():
            if not self._launch(part, fused, some, those, scale, threshold, histograms):
                left += some
                rest += kept
        return left, rest

    def _launch(self, part, fused, places, tensors, scale, threshold, histograms):
        if not _at_hand(scale, tensors) or not _at_hand(threshold, tensors):
            return False  # offloaded: the host multiplies the norms later
        try:
            sizes = tuple(map(_numel(), tensors))
            answer = fused.measure(tensors, _there(scale, tensors), _there(threshold, tensors), histograms, sizes)
        except fused.errors as error:
            self._selection.retire(tensors[0].device, error)
            return False
        if answer is None:
            return False
        self.threshold = self.threshold or threshold is not None
        self.count(places, sizes)
        part.read_bytes(answer, _later(self._take_answer, places))
        return True

    def _take_answer(self, places, answer):
        rows, counts = chunks.decode(answer, len(places))
        self.take_rows(places, rows)
        if counts is not None:
            self.take_histograms(places, counts)

    def measure(self, part, places, tensors, scale=None):
        """The always-on pass over `tensors`; `scale`: what to multiply them with, a 0-d tensor or None."""
        groups = self._uniform(part.entry, places, tensors)
        if groups is None:
            groups = [(some, kernel.norms(dense)) for kernel, some, dense in self._by_device(places, tensors)]
        for some, found in groups:
            if isinstance(found, tuple) and scale is None:
                self.take_norms(some, *found)
            elif isinstance(found, tuple):  # on the host; the scale may still be on its way
                part.read([scale], _later(self.take_norms, some, *found))
            else:
                sources = [found] if scale is None else [found, scale]
                part.read(sources, _later(self.take_device_norms, some))

    def _uniform(self, entry, places, tensors):
        """The short way for ordinary tensors on one device, all but a few jobs: 0.1 ms less for 150 tensors. Else None."""
        if not entry.uniform or not tensors or not _plain(tensors):
            return None
        try:
            if not tensors[0].is_cpu and len(set(map(_device_index(), tensors))) != 1:
                return None  # the CPU's kernel refuses what lies elsewhere by itself
            sizes = tuple(map(_numel(), tensors))
            found = choose(tensors[0].device.type).norms(tensors, sizes)
        except RuntimeError:  # sparse, complex, integer: one by one then, from now on
            entry.uniform = False
            return None
        self.count(places, sizes)
        return [(places, found)]

    def detail(self, part, places, tensors, scale=None, threshold=None):
        """Every column, exact non-finite counts included, in the place of what `measure` has found.

        Returns whether some tensors had to be left out, because their scale is on another device.
        """
        self.threshold = self.threshold or threshold is not None
        missing = False
        for kernel, some, dense in self._by_device(places, tensors):
            if not _at_hand(scale, dense) or not _at_hand(threshold, dense):
                self.threshold, missing = False, True
                continue
            found = kernel.table(dense, scale, threshold)
            if isinstance(found, list):
                self.take_rows(some, found)
            else:
                part.read([found], _later(self.take_rows, some))
        return missing

    def distribute(self, part, places, tensors, scale=None):
        """Histograms of the tensors."""
        for kernel, some, dense in self._by_device(places, tensors):
            found = kernel.histograms(dense, scale) if _at_hand(scale, dense) else None
            if found is not None:
                part.read([found], _later(self.take_histograms, some))

    def _by_device(self, places, tensors):
        """(kernel, places, dense tensors) for each device; what cannot be read is noted and left out."""
        groups = {}
        for place, tensor in zip(places, tensors):
            dense, reason = readable(tensor)
            self.sharded = self.sharded or (dense is not None and hasattr(tensor, "to_local"))
            if reason is not None:
                self.unreadable[place] = reason
                continue
            self.count((place,), (dense.numel(),))
            some, those = groups.setdefault(dense.device, ([], []))
            some.append(place)
            those.append(dense)
        return [(choose(device.type), some, those) for device, (some, those) in groups.items()]


def _plain(tensors):
    torch = sys.modules["torch"]
    return set(map(type, tensors)) <= {torch.Tensor, torch.nn.Parameter}


def _device_index():
    """-1 for a tensor on the CPU; an order of magnitude less than comparing devices."""
    return sys.modules["torch"].Tensor.get_device


def _numel():
    return sys.modules["torch"].Tensor.numel


def _there(value, tensors):
    """A 0-d tensor on the device of `tensors`, on which a kernel reads it; one from the CPU is copied without waiting."""
    return value if value is None or value.device == tensors[0].device else value.to(tensors[0].device, non_blocking=True)


def _at_hand(value, tensors):
    """Whether a 0-d tensor can be used on these tensors without waiting: offloaded gradients have their scale on the device."""
    return value is None or value.is_cpu or value.device == tensors[0].device


def _later(take, *given):
    def arrived(*values):
        take(*given, *values)

    return arrived
