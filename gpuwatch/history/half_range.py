"""How a run's gradients fit into float16: what each loss scale would flush to zero or overflow, and which scale fits best.

From the last log2 histogram of every layer's gradient, in true units. For a scale that is a power of two the counts are exact:
float16 rounds to zero what lies below 2^-25 (half of its smallest number) and to infinity what lies above 65,504.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import msgspec

from gpuwatch.history.past import Past
from gpuwatch.state import layers
from gpuwatch.state.records import HistogramRows

_ZERO_EXPONENT = -25
_OVERFLOW_EXPONENT = 16  # 2**16 is above the largest number, and its bucket begins there
#: Powers of two left free above the largest gradient: steps differ, and each overflow costs one.
HEADROOM_POWERS = 3
POWERS = range(25)


class LayerRange(msgspec.Struct, frozen=True):
    """One tensor's gradient: entries by exponent of two, zeros left out, and how many zeros there are."""

    name: str
    counts: dict[int, int]  # exponent e: entries with 2**e <= |g| < 2**(e+1)

    def lost_ratio(self, power: int) -> float:
        """Share of its entries, zeros aside, that float16 flushes to zero at a loss scale of 2**power."""
        total = sum(self.counts.values())
        return sum(n for e, n in self.counts.items() if e + power < _ZERO_EXPONENT) / total if total else 0.0


class HalfRange(msgspec.Struct, frozen=True):
    layers: tuple[LayerRange, ...]
    lost: tuple[float, ...]  # for each of POWERS: share of all entries that are flushed to zero
    largest_exponent: int  # of any entry

    @property
    def recommended_power(self) -> int:
        """The largest scale that leaves HEADROOM_POWERS above the largest entry, as a power of two; at least 0."""
        room = _OVERFLOW_EXPONENT - 1 - HEADROOM_POWERS - self.largest_exponent
        return max(0, min(POWERS[-1], room))

    @property
    def fits(self) -> bool:
        """Whether at that scale less than one entry in a thousand is lost, and none overflows."""
        return self.lost[self.recommended_power] < 1e-3 and self.largest_exponent + self.recommended_power < _OVERFLOW_EXPONENT

    def first_to_underflow(self, power: int) -> list[LayerRange]:
        """The layers that lose most at a scale of 2**power, worst first; those that lose nothing are left out."""
        losing = [layer for layer in self.layers if layer.lost_ratio(power) > 0.0]
        return sorted(losing, key=lambda layer: -layer.lost_ratio(power))


def half_range(past: Past) -> HalfRange | None:
    """The range of the run's last gradients, or None when no histogram was recorded."""
    zeros = {index: row.get("zero_ratio", math.nan) for index, row in past.layers["gradient"].last().items()}
    found = tuple(_layers(past, past.histograms.values(), zeros))
    total = sum(sum(layer.counts.values()) for layer in found)
    if not total:
        return None
    lost = tuple(
        sum(n for layer in found for e, n in layer.counts.items() if e + power < _ZERO_EXPONENT) / total for power in POWERS
    )
    return HalfRange(found, lost, max(e for layer in found for e in layer.counts))


def _layers(past: Past, tables: Iterable[HistogramRows], zeros: dict[int, float]) -> Iterable[LayerRange]:
    for table in tables:
        for index, counts in layers.buckets(table):
            present = {table.first_exponent + i: n for i, n in enumerate(counts) if n}
            # The first bucket holds zeros too; their share is measured apart, over all entries.
            smallest, share = table.first_exponent, zeros.get(index, math.nan)
            if smallest in present:
                known = 0 if math.isnan(share) else round(present[smallest] - share * sum(counts))
                present[smallest] = max(0, known)
            yield LayerRange(past.tensor_name(index), {e: n for e, n in present.items() if n})


def of_scale(scale: float) -> int:
    """The power of two of a loss scale, rounded down and kept within POWERS."""
    return min(POWERS[-1], max(0, math.frexp(scale)[1] - 1)) if scale >= 1.0 else 0
