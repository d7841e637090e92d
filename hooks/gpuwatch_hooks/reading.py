"""Statistics of an optimizer's tensors, measured kernel by kernel, device by device, and put together on the host."""

import math
import struct
from array import array
from operator import add, mul, sub

from . import wire
from .kernels import choose
from .kernels.dense import readable

_COLUMNS = len(wire.TENSOR_COLUMNS)
_NORM, _ABSMAX, _ZEROS, _BAD, _LOST = (
    wire.TENSOR_COLUMNS.index(name) for name in ("norm", "absmax", "zero_ratio", "nonfinite_count", "underflow_ratio")
)
#: Columns that carry the unit of the tensor; the others are shares and counts.
_WITH_UNIT = tuple(wire.TENSOR_COLUMNS.index(name) for name in ("norm", "absmax", "mean_abs", "mean", "std"))
NORM_ONLY = 1 << _NORM | 1 << _BAD
_ALL_BUT_LOST = (1 << _COLUMNS) - 1 & ~(1 << _LOST)


class Reading:
    """What was measured of the tensors of one entry, by their place in it. Values arrive when the part is written.

    `norms` {place: L2 norm over finite entries}, `nonfinite` {place: count, where not 0}, `blocks` of rows of
    wire.TENSOR_COLUMNS, blocks of `histograms`; `entries` {place: how many numbers were read}. True units.
    """

    def __init__(self):
        self.norms = {}
        self.nonfinite = {}
        self.blocks = []  # (places, flat list of 8 numbers a place)
        self.histograms = []  # (places, flat list of 64 counts a place)
        self.entries = {}  # in the order of reading, as the rows of a single block are
        self.unreadable = {}  # place -> reason
        self.sharded = False  # some tensors are this rank's part of a DTensor
        self.threshold = False  # whether the shares lost to fp16 were asked for

    def measure(self, part, places, tensors, scale=None):
        """The always-on pass over `tensors`; `scale`: what to multiply them with, a 0-d tensor or None."""
        groups = self._uniform(part.entry, places, tensors)
        if groups is None:
            groups = [(some, kernel.norms(dense)) for kernel, some, dense in self._by_device(places, tensors)]
        for some, found in groups:
            if isinstance(found, tuple) and scale is None:
                self._take_norms(some, *found)
            elif isinstance(found, tuple):  # on the host; the scale may still be on its way
                part.read([scale], _later(self._take_norms, some, *found))
            else:
                sources = [found] if scale is None else [found, scale]
                part.read(sources, _later(self._take_device_norms, some))

    def _uniform(self, entry, places, tensors):
        """The short way for ordinary tensors on one device, all but a few jobs: 0.1 ms less for 150 tensors. Else None."""
        import torch

        if not entry.uniform or not tensors or not set(map(type, tensors)) <= {torch.Tensor, torch.nn.Parameter}:
            return None
        device = tensors[0].device
        if not all(tensor.is_cpu for tensor in tensors) and {tensor.device for tensor in tensors} != {device}:
            return None
        try:
            found = choose(device.type).norms(tensors)
        except (RuntimeError, NotImplementedError):  # sparse, complex, integer: one by one then, from now on
            entry.uniform = False
            return None
        self.entries.update(zip(places, map(torch.Tensor.numel, tensors)))
        return [(places, found)]

    def detail(self, part, places, tensors, scale=None, threshold=None):
        """Every column, exact non-finite counts included; replaces what `measure` has found."""
        self.threshold = threshold is not None
        for kernel, some, dense in self._by_device(places, tensors):
            if not _at_hand(scale, dense) or not _at_hand(threshold, dense):
                self.threshold = False
                continue
            found = kernel.table(dense, scale, threshold)
            if isinstance(found, list):
                self._take_rows(some, found)
            else:
                part.read([found], _later(self._take_rows, some))

    def distribute(self, part, places, tensors, scale=None):
        """Histograms of the tensors."""
        for kernel, some, dense in self._by_device(places, tensors):
            found = kernel.histograms(dense, scale) if _at_hand(scale, dense) else None
            if found is not None:
                part.read([found], _later(self._take_histograms, some))

    def _by_device(self, places, tensors):
        """(kernel, places, dense tensors) for each device; what cannot be read is noted and left out."""
        groups = {}
        for place, tensor in zip(places, tensors):
            dense, reason = readable(tensor)
            self.sharded = self.sharded or (dense is not None and hasattr(tensor, "to_local"))
            if reason is not None:
                self.unreadable[place] = reason
                continue
            self.entries[place] = dense.numel()
            some, those = groups.setdefault(dense.device, ([], []))
            some.append(place)
            those.append(dense)
        return [(choose(device.type), some, those) for device, (some, those) in groups.items()]

    def _take_norms(self, places, norms, nonfinite, scale=(1.0,)):
        if scale[0] != 1.0:
            norms = [norm * scale[0] for norm in norms]
        self.norms.update(zip(places, norms))
        self.nonfinite.update((places[index], count) for index, count in nonfinite.items())

    def _take_device_norms(self, places, norms, scale=(1.0,)):
        for place, norm in zip(places, norms):
            if math.isfinite(norm):
                self.norms[place] = norm * scale[0]
            else:  # the device was not asked how many: at least one, until the next table says more
                self.nonfinite[place] = self.nonfinite.get(place, 1)

    def _take_rows(self, places, flat):
        """`flat`: 8 numbers for each place. By columns, since 150 rows in Python loops cost more than all the rest."""
        self.blocks.append((places, flat))
        bad = flat[_BAD::_COLUMNS]
        for place in places if self.nonfinite else ():
            self.nonfinite.pop(place, None)
        if any(bad):
            self.nonfinite.update((place, int(count)) for place, count in zip(places, bad) if count)

    def _take_histograms(self, places, flat):
        self.histograms.append((places, flat))

    # ------------------------------------------------------------------------------------------------ on the host
    def norm(self):
        """L2 norm over everything that was read."""
        if len(self.blocks) == 1 and len(self.blocks[0][0]) == len(self.entries):
            return math.hypot(*self.blocks[0][1][_NORM::_COLUMNS])
        norms = dict(self.norms)
        for places, flat in self.blocks:
            norms.update(zip(places, flat[_NORM::_COLUMNS]))
        return math.hypot(*norms.values())

    def shares(self):
        """(largest magnitude, share of zeros, share lost to fp16 or None) over all rows; None without rows."""
        largest = zeros = lost = nonzero = total = 0.0
        for places, flat in self.blocks:
            entries = self.entries
            counts = list(entries.values() if len(places) == len(entries) else map(entries.__getitem__, places))
            largest = max(largest, *flat[_ABSMAX::_COLUMNS])
            total += sum(counts)
            zero = list(map(mul, flat[_ZEROS::_COLUMNS], counts))
            zeros += sum(zero)
            if self.threshold:
                filled = list(map(sub, counts, map(add, zero, flat[_BAD::_COLUMNS]) if self.nonfinite else zero))
                nonzero += sum(filled)
                lost += sum(map(mul, flat[_LOST::_COLUMNS], filled))
        if not total:
            return None
        return largest, zeros / total, ((lost / nonzero if nonzero else 0.0) if self.threshold else None)

    def cells(self, count):
        """(float32 rows of `count` places as array("f"), mask of columns). A tensor that was not read has a row of NaN."""
        if self.blocks:
            cells = _spread(self.blocks, count, array("f", [math.nan]), _COLUMNS)
            return cells, (1 << _COLUMNS) - 1 if self.threshold else _ALL_BUT_LOST
        flat = array("f", [math.nan]) * (count * _COLUMNS)
        norms, bad = self.norms, self.nonfinite
        flat[_NORM::_COLUMNS] = array("f", [norms.get(place, math.nan) for place in range(count)])
        flat[_BAD::_COLUMNS] = array("f", [bad.get(place, 0.0 if place in norms else math.nan) for place in range(count)])
        return flat, NORM_ONLY

    def buckets(self, count):
        """u32 histograms of `count` places as array("I"), zeros where a tensor was not read."""
        return _spread(self.histograms, count, array("I", [0]), wire.HISTOGRAM_BUCKETS)


def _spread(blocks, count, empty, width):
    """The rows of all blocks at their places in an array of `count` rows, the others filled with `empty`."""
    places, flat = blocks[0]
    if len(places) == count:  # all on one device, all with a gradient: in order already
        return _packed(flat, empty.typecode)
    cells = empty * (count * width)
    for places, flat in blocks:
        packed = _packed(flat, empty.typecode)
        for index, place in enumerate(places):
            cells[width * place : width * (place + 1)] = packed[width * index : width * (index + 1)]
    return cells


def _packed(flat, typecode):
    """An array of Python numbers: struct packs 1,200 of them in 6 us, where array takes 13, but refuses what is too large."""
    cells = array(typecode)
    try:
        cells.frombytes(struct.pack("%d%s" % (len(flat), typecode), *flat))
    except OverflowError:
        cells.extend(flat)
    return cells


def _at_hand(value, tensors):
    """Whether a 0-d tensor can be used on these tensors without waiting: offloaded gradients have their scale on the device."""
    return value is None or value.is_cpu or value.device == tensors[0].device


def _later(take, *given):
    def arrived(*values):
        take(*given, *values)

    return arrived
