"""What was measured of an optimizer's tensors, put together on the host once it has arrived."""

import math
import struct
from array import array
from operator import add, mul, sub

from . import wire

_COLUMNS = len(wire.TENSOR_COLUMNS)
_NORM, _ABSMAX, _ZEROS, _BAD, _LOST = (
    wire.TENSOR_COLUMNS.index(name) for name in ("norm", "absmax", "zero_ratio", "nonfinite_count", "underflow_ratio")
)
#: Columns that carry the unit of the tensor; the others are shares and counts.
_WITH_UNIT = tuple(wire.TENSOR_COLUMNS.index(name) for name in ("norm", "absmax", "mean_abs", "mean", "std"))
NORM_ONLY = 1 << _NORM | 1 << _BAD
_ALL_BUT_LOST = (1 << _COLUMNS) - 1 & ~(1 << _LOST)


class Measured:
    """The values of a Reading, by the tensors' places in their entry, in true units.

    `norms` {place: L2 norm over finite entries}, `nonfinite` {place: count, where not 0}, `blocks` of rows of
    wire.TENSOR_COLUMNS, blocks of `histograms`; `entries` {place: how many numbers were read}. The dictionaries are made
    when they are asked for: in the usual step, one device and all of it finite, nobody does.
    """

    def __init__(self):
        self.nonfinite = {}
        self.blocks = []  # (places, flat sequence of 8 numbers a place)
        self.histograms = []  # (places, flat sequence of 64 counts a place)
        self.threshold = False  # whether the shares lost to fp16 were asked for
        self._norms = {}
        self._whole = None  # (places, norms) as the only kernel gave them
        self._entries = {}
        self._counted = []  # (places, sizes) that are not in _entries yet

    @property
    def norms(self):
        whole, self._whole = self._whole, None
        if whole is not None:
            self._norms.update(zip(*whole))
        return self._norms

    @property
    def entries(self):
        """In the order of reading, as the rows of a single block are."""
        counted, self._counted = self._counted, []
        for places, sizes in counted:
            self._entries.update(zip(places, sizes))
        return self._entries

    def count(self, places, sizes):
        """So many numbers of the tensors at `places` are being read."""
        self._counted.append((places, sizes))

    def __bool__(self):
        """Whether anything was read."""
        return bool(self._counted or self._entries)

    def take_norms(self, places, norms, nonfinite, scale=(1.0,)):
        if scale[0] != 1.0:
            norms = [norm * scale[0] for norm in norms]
        if not self._norms and self._whole is None:
            self._whole = (places, norms)
        else:
            self.norms.update(zip(places, norms))
        self.nonfinite.update((places[index], count) for index, count in nonfinite.items())

    def take_device_norms(self, places, norms, scale=(1.0,)):
        for place, norm in zip(places, norms):
            if math.isfinite(norm):
                self.norms[place] = norm * scale[0]
            else:  # the device was not asked how many: at least one, until the next table says more
                self.nonfinite[place] = self.nonfinite.get(place, 1)

    def take_rows(self, places, flat):
        """`flat`: 8 numbers for each place. By columns, since 150 rows in Python loops cost more than all the rest."""
        self.blocks.append((places, flat))
        bad = flat[_BAD::_COLUMNS]
        for place in places if self.nonfinite else ():
            self.nonfinite.pop(place, None)
        if any(bad):
            self.nonfinite.update((place, int(count)) for place, count in zip(places, bad) if count)

    def take_histograms(self, places, flat):
        self.histograms.append((places, flat))

    def weigh(self, factors):
        """Keep the norms alone, each multiplied by its place's factor."""
        for places, flat in self.blocks:
            self.norms.update(zip(places, flat[_NORM::_COLUMNS]))
        self.blocks = []
        self._norms = {place: norm * factors[place] for place, norm in self.norms.items()}

    def norm(self):
        """L2 norm over everything that was read."""
        if self._whole is not None and not self.blocks:
            return math.hypot(*self._whole[1])
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
            with_rows = set().union(*[places for places, _ in self.blocks]) if len(self.blocks[0][0]) < count else ()
            for place, norm in self.norms.items() if with_rows else ():
                if place not in with_rows:  # a type that the fused kernel does not read
                    cells[place * _COLUMNS + _NORM], cells[place * _COLUMNS + _BAD] = norm, self.nonfinite.get(place, 0.0)
            return cells, (1 << _COLUMNS) - 1 if self.threshold else _ALL_BUT_LOST
        flat = array("f", [math.nan]) * (count * _COLUMNS)
        if self._whole is not None and len(self._whole[0]) == count and not self.nonfinite:
            flat[_NORM::_COLUMNS] = array("f", self._whole[1])
            flat[_BAD::_COLUMNS] = array("f", bytes(4 * count))
            return flat, NORM_ONLY
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
    if isinstance(flat, array) and flat.typecode == typecode:
        return flat
    cells = array(typecode)
    try:
        cells.frombytes(struct.pack("%d%s" % (len(flat), typecode), *flat))
    except OverflowError:
        cells.extend(flat)
    return cells
