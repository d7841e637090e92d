"""One GPU as lines: what it is and how it does, and under it the curves of utilization and memory with their peaks."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

from gpuwatch.state.peaks import WINDOWS_SECONDS
from gpuwatch.top.lines import Line, Segment, fitted, padded
from gpuwatch.top.plot import PEAK, bar, plot
from gpuwatch.top.quantities import of_bytes, percent

if TYPE_CHECKING:
    from collections.abc import Iterable

    from gpuwatch.state.node_report import GpuReport
    from gpuwatch.top.history import Curves

#: What a block with plots takes besides the plots themselves: the headline and the captions.
CAPTION_ROWS = 2
_UTILIZATION, _MEMORY, _PEAK = "green", "cyan", "magenta"


def block(gpu: GpuReport, curves: Curves, width: int, plot_rows: int) -> list[Line]:
    """`plot_rows` + CAPTION_ROWS lines of exactly `width` cells; a single line when `plot_rows` is 0."""
    if plot_rows == 0:
        return [padded(_row(gpu, width), width)]
    headline = padded(_headline(gpu, width), width)
    if not gpu.up:
        return [headline, *([padded([], width)] * (plot_rows + 1))]
    left, values = (width - 2) // 2, gpu.values
    busy, used = percent(values.get("utilization_ratio")), _memory_text(values)
    window, peak = _peak(values.get("utilization_peak_ratio", {}), left)
    told = f"peak {percent(peak)} in {window}" if window else ""
    utilization = _plotted(("util", busy, told), curves.utilization, peak, _UTILIZATION, (left, plot_rows))
    window, peak = _peak(values.get("memory_used_peak_bytes", {}), width - 2 - left)
    told = f"peak {of_bytes(peak)} in {window}" if window else ""
    peak = None if peak is None else _share_of_memory(values, peak)
    memory = _plotted(("mem", used, told), curves.memory, peak, _MEMORY, (width - 2 - left, plot_rows))
    return [headline, *([*one, Segment("  "), *other] for one, other in zip(utilization, memory, strict=True))]


def throttling(values: dict[str, Any]) -> list[str]:
    """Why the clocks are held down now: the contract's reasons, as words."""
    return [name.replace("_", " ") for name, active in values.get("throttle_active", {}).items() if active]


def _headline(gpu: GpuReport, width: int) -> Line:
    name = gpu.info.get("name", "GPU").removeprefix("NVIDIA ")
    label = [Segment(f"{gpu.gpu} ", "bold"), Segment(name, "bold")]
    if not gpu.up:
        age = "" if gpu.age_seconds is None else f", last seen {gpu.age_seconds:.0f} s ago"
        return fitted([(0, label), (1, [Segment(f"down: {gpu.reason}{age}", "bold red")])], width)
    parts = [(0, label), (1, _power(gpu.values, 8)), (2, _temperature(gpu.values)), (4, _clocks(gpu.values))]
    return fitted([*parts, (5, _activity(gpu.values)), (1, _throttled(gpu.values))], width)


def _row(gpu: GpuReport, width: int) -> Line:
    label = [Segment(f"{gpu.gpu:>3} ", "bold")]
    if not gpu.up:
        return fitted([(0, label), (1, [Segment(f"down: {gpu.reason}", "bold red")])], width, gap="")
    values = gpu.values
    busy, used = values.get("utilization_ratio"), values.get("memory_used_bytes")
    peak = values.get("memory_used_peak_bytes", {}).get("60s")
    parts = [
        (0, label),
        (1, [Segment(f"{percent(busy):>4} "), Segment(bar(busy, 10), _UTILIZATION)]),
        (2, [Segment(f"{_memory_text(values):>11} "), Segment(bar(_share_of_memory(values, used), 10), _MEMORY)]),
        (6, [Segment(f"peak {of_bytes(peak):>5}", _PEAK)] if peak is not None else []),
        (4, _power(values, 0)),
        (5, _temperature(values)),
        (7, _clocks(values)),
        (3, _throttled(values)),
    ]
    return fitted(parts, width)


def _plotted(
    caption: tuple[str, str, str], curve: Iterable[float | None], peak_ratio: float | None, style: str, size: tuple[int, int]
) -> list[Line]:
    """`caption`: name, value, peak in words; `size`: (cells, rows of the plot)."""
    name, now, peak = caption
    width, rows = size
    told = fitted([(0, [Segment(f"{name} ", "dim"), Segment(now, f"bold {style}")]), (1, [Segment(peak, _PEAK)])], width)
    drawn = plot(list(curve), width, rows, peak_ratio)
    return [padded(told, width), *(_coloured(row, style) for row in drawn)]


def _coloured(row: str, style: str) -> Line:
    """The line of the peak in a colour of its own."""
    return [
        Segment("".join(cells), _PEAK if is_peak else style)
        for is_peak, cells in itertools.groupby(row, key=lambda cell: cell == PEAK)
    ]


def _peak(windows: dict[str, float], seconds: int) -> tuple[str, float | None]:
    """The shortest window that covers a plot of so many seconds, and the peak within it."""
    for window, covered_seconds in WINDOWS_SECONDS.items():
        if covered_seconds >= seconds and window in windows:
            return window, windows[window]
    return "", None


def _share_of_memory(values: dict[str, Any], used_bytes: float | None) -> float | None:
    size_bytes = values.get("memory_size_bytes")
    return used_bytes / size_bytes if size_bytes and used_bytes is not None else None


def _memory_text(values: dict[str, Any]) -> str:
    return f"{of_bytes(values.get('memory_used_bytes'))}/{of_bytes(values.get('memory_size_bytes'))}"


def _power(values: dict[str, Any], bar_width: int) -> Line:
    watts, limit = values.get("power_watts"), values.get("power_limit_watts")
    if watts is None:
        return []
    if not limit:
        return [Segment(f"{watts:.0f} W")]
    told = Segment(f"{f'{watts:.0f}/{limit:.0f}':>7} W", "yellow" if watts >= 0.98 * limit else "")
    return [told, Segment(" "), Segment(bar(watts / limit, bar_width), "blue")] if bar_width else [told]


def _temperature(values: dict[str, Any]) -> Line:
    sensors = values.get("temperature_celsius", {})
    core = sensors.get("core")
    if core is None:
        return []
    slowdown = values.get("temperature_threshold_celsius", {}).get("slowdown")
    # Five degrees below the point where the driver slows the clocks down is news.
    hot = slowdown is not None and core >= slowdown - 5
    memory = f"/{sensors['memory']:.0f}" if sensors.get("memory") else ""
    return [Segment(f"{core:.0f}{memory}°C", "red" if hot else "")]


def _clocks(values: dict[str, Any]) -> Line:
    clocks, most = values.get("clock_hertz", {}), values.get("clock_max_hertz", {})
    told = [
        f"{name} {clocks[domain] / 1e6:.0f}" + (f"/{most[domain] / 1e6:.0f}" if domain in most else "")
        for domain, name in (("sm", "sm"), ("memory", "mem"))
        if domain in clocks
    ]
    return [Segment(f"{' '.join(told)} MHz")] if told else []


def _activity(values: dict[str, Any]) -> Line:
    """What the counters of Hopper and newer say that `util` cannot: how much of the chip works."""
    told = [
        f"{name} {percent(values[field])}"
        for field, name in (("sm_active_ratio", "SM"), ("tensor_active_ratio", "tensor"), ("dram_active_ratio", "DRAM"))
        if field in values
    ]
    return [Segment(" ".join(told), "dim")] if told else []


def _throttled(values: dict[str, Any]) -> Line:
    reasons = throttling(values)
    return [Segment("throttled: " + ", ".join(reasons), "bold yellow")] if reasons else []
