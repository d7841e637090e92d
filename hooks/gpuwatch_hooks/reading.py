"""Statistics of an optimizer's tensors, measured kernel by kernel, device by device, and put together on the host."""

import math
from array import array

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

    `norms` {place: L2 norm over finite entries}, `nonfinite` {place: count, where not 0}, `rows` {place: 8 floats of
    wire.TENSOR_COLUMNS}, `histograms` {place: 64 ints}; `entries` {place: how many numbers were read}. True units.
    """

    def __init__(self):
        self.norms = {}
        self.nonfinite = {}
        self.rows = {}
        self.histograms = {}
        self.entries = {}
        self.unreadable = {}  # place -> reason
        self.threshold = False  # whether the shares lost to fp16 were asked for

    def measure(self, part, places, tensors, scale=None):
        """The always-on pass over `tensors`; `scale`: what to multiply them with, a 0-d tensor or None."""
        groups = self._uniform(part.entry, places, tensors)
        if groups is None:
            groups = [(some, kernel.norms(dense)) for kernel, some, dense in self._by_device(places, tensors)]
        for some, found in groups:
            if isinstance(found, tuple):
                self._take_norms(some, found[0], found[1], 1.0 if scale is None else float(scale))
            else:
                sources = [found] if scale is None else [found, scale]
                part.read(sources, _later(self._take_device_norms, some))

    def _uniform(self, entry, places, tensors):
        """The short way for ordinary tensors on one device, all but a few jobs: 0.1 ms less for 150 tensors. Else None."""
        import torch

        if not entry.uniform or not tensors or not set(map(type, tensors)) <= {torch.Tensor, torch.nn.Parameter}:
            return None
        device = tensors[0].device
        if not all([tensor.is_cpu for tensor in tensors]) and {tensor.device for tensor in tensors} != {device}:
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
            found = kernel.table(dense, scale, threshold)
            if isinstance(found, list):
                self._take_rows(some, found)
            else:
                part.read([found], _later(self._take_device_rows, some))

    def distribute(self, part, places, tensors, scale=None):
        """Histograms of the tensors."""
        for kernel, some, dense in self._by_device(places, tensors):
            found = kernel.histograms(dense, scale)
            if found is not None:
                part.read([found], _later(self._take_histograms, some))

    def _by_device(self, places, tensors):
        """(kernel, places, dense tensors) for each device; what cannot be read is noted and left out."""
        groups = {}
        for place, tensor in zip(places, tensors):
            dense, reason = readable(tensor)
            if reason is not None:
                self.unreadable[place] = reason
                continue
            self.entries[place] = dense.numel()
            some, those = groups.setdefault(dense.device, ([], []))
            some.append(place)
            those.append(dense)
        return [(choose(device.type), some, those) for device, (some, those) in groups.items()]

    def _take_norms(self, places, norms, nonfinite, factor):
        if factor != 1.0:
            norms = [norm * factor for norm in norms]
        self.norms.update(zip(places, norms))
        self.nonfinite.update((places[index], count) for index, count in nonfinite.items())

    def _take_device_norms(self, places, norms, scale=(1.0,)):
        for place, norm in zip(places, norms):
            if place in self.rows:
                continue
            if math.isfinite(norm):
                self.norms[place] = norm * scale[0]
            else:  # the device was not asked how many: at least one, until the next table says more
                self.nonfinite[place] = self.nonfinite.get(place, 1)

    def _take_rows(self, places, rows):
        for place, row in zip(places, rows):
            self.rows[place] = row
            self.norms[place] = row[_NORM]
            self.nonfinite.pop(place, None)
            if row[_BAD]:
                self.nonfinite[place] = int(row[_BAD])

    def _take_device_rows(self, places, flat):
        self._take_rows(places, [flat[at : at + _COLUMNS] for at in range(0, len(flat), _COLUMNS)])

    def _take_histograms(self, places, flat):
        width = wire.HISTOGRAM_BUCKETS
        for index, place in enumerate(places):
            self.histograms[place] = flat[index * width : (index + 1) * width]

    # ------------------------------------------------------------------------------------------------ on the host
    def norm(self):
        """L2 norm over everything that was read."""
        return math.hypot(*self.norms.values())

    def shares(self):
        """(largest magnitude, share of zeros, share lost to fp16 or None) over all rows; None without rows."""
        if not self.rows:
            return None
        largest = zeros = lost = nonzero = total = 0.0
        for place, row in self.rows.items():
            count = self.entries[place]
            largest = max(largest, row[_ABSMAX])
            zeros += row[_ZEROS] * count
            total += count
            filled = count * (1.0 - row[_ZEROS]) - row[_BAD]
            nonzero += filled
            if self.threshold:
                lost += row[_LOST] * filled
        share = (lost / nonzero if nonzero else 0.0) if self.threshold else None
        return largest, (zeros / total if total else 0.0), share

    def cells(self, entry):
        """(float32 rows of the entry as array("f"), mask of columns). A tensor that was not read has a row of NaN."""
        count = len(entry.parameters)
        if self.rows:
            empty = [math.nan] * _COLUMNS
            rows = self.rows
            flat = array("f", [cell for place in range(count) for cell in rows.get(place, empty)])
            return flat, (1 << _COLUMNS) - 1 if self.threshold else _ALL_BUT_LOST
        flat = array("f", [math.nan]) * (count * _COLUMNS)
        norms = self.norms
        flat[_NORM::_COLUMNS] = array("f", [norms.get(place, math.nan) for place in range(count)])
        bad = self.nonfinite
        flat[_BAD::_COLUMNS] = array("f", [bad.get(place, 0.0 if place in norms else math.nan) for place in range(count)])
        return flat, NORM_ONLY

    def buckets(self, entry):
        """u32 histograms of the entry as array("I"), zeros where a tensor was not read."""
        empty = [0] * wire.HISTOGRAM_BUCKETS
        return array("I", [n for place in range(len(entry.parameters)) for n in self.histograms.get(place, empty)])


def _later(take, places):
    def arrived(*values):
        take(places, *values)

    return arrived
