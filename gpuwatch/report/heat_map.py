"""Layers over time as one picture: a row a layer, a column a step, brighter where the gradient is larger.

A PNG of one pixel a cell inside an SVG that stretches it: 150 layers at 128 steps would be 19,200 rectangles otherwise.
"""

from __future__ import annotations

import base64
import html
import math
from collections.abc import Sequence

from gpuwatch.exporters import png

_ROW_PIXELS = 12
_WIDTH, _LABELS, _FOOT = 940, 250, 20
#: Ends and middle of the colour scale, dark to bright; a layer without a gradient is grey, one that is not finite red.
_SCALE = ((32, 18, 77), (146, 36, 115), (229, 92, 48), (252, 227, 120))
_NONE, _WILD = (128, 128, 128), (255, 0, 0)
_MAX_NAME = 38


def heat_map(names: Sequence[str], steps: Sequence[int], rows: Sequence[Sequence[float]]) -> str:
    """SVG of log10 of `rows` [len(names)][len(steps)] (non-negative); "" when nothing in it is positive."""
    powers = [math.log10(v) for row in rows for v in row if 0.0 < v < math.inf]
    if not powers or not steps:
        return ""
    low, high = _quantile(powers, 0.01), _quantile(powers, 0.99)
    pixels = b"".join(bytes(_colour(value, low, high)) for row in rows for value in row)
    picture = base64.b64encode(png.encode(pixels, len(steps), len(names), 3)).decode()
    height = _ROW_PIXELS * len(names)
    labels = "".join(
        f'<text class="tick" text-anchor="end" x="{_LABELS - 6}" y="{_ROW_PIXELS * i + 9}">{html.escape(_short(name))}'
        f"<title>{html.escape(name)}</title></text>"
        for i, name in enumerate(names)
    )
    foot = (
        f'<text class="tick" x="{_LABELS}" y="{height + 14}">{steps[0]:,}</text>'
        f'<text class="tick" text-anchor="end" x="{_WIDTH}" y="{height + 14}">step {steps[-1]:,}</text>'
        f'<text class="tick" text-anchor="middle" x="{(_LABELS + _WIDTH) / 2}" y="{height + 14}">'
        f"dark 1e{low:.1f} to bright 1e{high:.1f}, grey none, red not finite</text>"
    )
    return (
        f'<svg viewBox="0 0 {_WIDTH} {height + _FOOT}" role="img" aria-label="gradient norm of each layer over time" '
        f'xmlns="http://www.w3.org/2000/svg">{labels}'
        f'<image x="{_LABELS}" y="0" width="{_WIDTH - _LABELS}" height="{height}" preserveAspectRatio="none" '
        f'style="image-rendering:pixelated" href="data:image/png;base64,{picture}"/>{foot}</svg>'
    )


def _short(name: str) -> str:
    return name if len(name) <= _MAX_NAME else f"{name[:14]}…{name[-_MAX_NAME + 15 :]}"


def _quantile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def _colour(value: float, low: float, high: float) -> tuple[int, int, int]:
    if math.isnan(value) or value == 0.0:
        return _NONE
    if math.isinf(value):
        return _WILD
    place = (math.log10(value) - low) / (high - low) if high > low else 0.5
    place = min(1.0, max(0.0, place)) * (len(_SCALE) - 1)
    index = min(len(_SCALE) - 2, int(place))
    share = place - index
    red, green, blue = (round(a + share * (b - a)) for a, b in zip(_SCALE[index], _SCALE[index + 1], strict=True))
    return red, green, blue
