"""The curve of a learning-rate range test as a picture. Needs matplotlib."""

from __future__ import annotations

import io
import math
import os
import time
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary

from gpuwatch.exporters import eventfile, summaries


def png(points: Sequence[tuple[float, float, float]], suggestion: float | None, minimum_tenth: float | None) -> bytes:
    """A PNG of (rate, loss, smoothed loss) points, with both suggestions marked."""
    figure = Figure(figsize=(7, 4.2), dpi=130, layout="constrained")
    axes = figure.add_subplot(xscale="log", xlabel="learning rate", ylabel="loss", title="Learning-rate range test")
    rates, losses, smoothed = zip(*points, strict=True)
    axes.plot(rates, losses, ".", color="0.75", markersize=4, label="loss of each step")
    axes.plot(rates, smoothed, color="tab:blue", label="smoothed")
    if suggestion is not None:
        axes.axvline(suggestion, color="tab:red", linestyle="--", label=f"steepest descent {suggestion:.2g}")
    if minimum_tenth is not None:
        axes.axvline(minimum_tenth, color="tab:green", linestyle=":", label=f"minimum / 10 {minimum_tenth:.2g}")
    finite = [loss for loss in smoothed if math.isfinite(loss)]
    if finite:  # the last points climb to many times the start: the fall that matters would be a line at the bottom
        fall = finite[0] - min(finite) or abs(finite[0]) or 1.0
        axes.set_ylim(min(finite) - 0.3 * fall, min(max(finite), finite[0] + fall) + 0.3 * fall)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    image = io.BytesIO()
    figure.savefig(image, format="png")
    return image.getvalue()


def to_tensorboard(image: bytes, directory: Path, step: int) -> None:
    """Add the picture to a run that has ended, in an event file of its own. Raises OSError."""
    summary, now = Summary(), time.time()
    summaries.add_png(summary, "lr_find", image)
    records = [Event(wall_time=now, file_version="brain.Event:2"), Event(wall_time=now, step=step, summary=summary)]
    target = directory / f"events.out.tfevents.{int(now):010d}.lr-find.{os.getpid()}"
    target.write_bytes(b"".join(eventfile.frame(record.SerializeToString()) for record in records))
