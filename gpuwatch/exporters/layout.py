"""The custom-scalars page: charts that put side by side what belongs together, whatever the run's own tags are."""

from __future__ import annotations

from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout

from gpuwatch.exporters.summaries import string_tensor

_METADATA = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="custom_scalars"))

#: category -> chart -> regular expressions, each matched from the start of a tag.
CHARTS: dict[str, dict[str, tuple[str, ...]]] = {
    "Training": {
        "Loss": (r"train/loss",),
        # What the job logs has an axis of its own, often of epochs: in one chart with the steps it would be a bar at 0.
        "Losses that the job logs": (r"(?!train/loss).*[Ll]oss(?!_scale)",),
        "Accuracy that the job logs": (r".*[Aa]cc",),
        "Learning rate": (r"train/lr/",),
    },
    "Gradients": {
        "Norm and largest entry, whole model": (r"grad/norm$", r"grad/absmax$"),
        "Norm of each layer": (r"grad/.+/norm$",),
        "Update to weight ratio of each layer": (r"update/.+/ratio$",),
        "Share of zeros in each layer": (r"grad/.+/zero_ratio$",),
    },
    "Mixed precision": {
        "Loss scale": (r"amp/loss_scale$",),
        "Skipped steps": (r"amp/skipped$",),
        "Share of gradients that fp16 would flush to zero": (r"amp/underflow_ratio$",),
    },
    "Speed": {
        "Where the step's time goes (seconds)": (r"phase/",),
    },
    "GPU": {
        "Memory (bytes)": (r"gpu/[0-9:]+/memory_(used|peak)$",),
        "Utilization (0 to 1)": (r"gpu/[0-9:]+/utilization$",),
        "Power (watts)": (r"gpu/[0-9:]+/power$",),
    },
}


def add_layout(summary: Summary) -> None:
    """The layout as the page's one summary. Runs may each carry it: the page merges equal charts."""
    layout = Layout(version=0)
    for title, charts in CHARTS.items():
        category = layout.category.add(title=title)
        for chart, patterns in charts.items():
            category.chart.add(title=chart).multiline.tag.extend(patterns)
    summary.value.add(tag="custom_scalars__config__", metadata=_METADATA, tensor=string_tensor(layout.SerializeToString()))
