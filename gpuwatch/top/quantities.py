"""Numbers in few cells: a screen of 80 columns has no room for units in words."""

from __future__ import annotations

import math

MISSING = "-"


def of_bytes(value: float | None) -> str:
    """In powers of 1024: 512M, 43.2G."""
    if value is None:
        return MISSING
    for unit in ("B", "K", "M", "G"):
        if abs(value) < 1000:
            return f"{value:.0f}{unit}" if unit in "BKM" or value >= 100 else f"{value:.1f}{unit}"
        value /= 1024
    return f"{value:.1f}T"


def percent(ratio: float | None) -> str:
    return MISSING if ratio is None else f"{100 * ratio:.0f}%"


def number(value: float | None) -> str:
    """Three significant digits: 0.00123, 12.3, 1.2e+06."""
    if value is None:
        return MISSING
    if not math.isfinite(value) or value == int(value):
        return f"{value:.0f}" if not math.isfinite(value) or abs(value) < 1e6 else f"{value:.2g}"
    return f"{value:.3g}"
