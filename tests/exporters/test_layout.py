import re

import pytest

from gpuwatch.exporters.layout import CHARTS


def charts_of(tag):
    """The charts that draw a tag; the page matches from the tag's start."""
    return {
        chart for charts in CHARTS.values() for chart, patterns in charts.items() if any(re.match(p, tag) for p in patterns)
    }


@pytest.mark.parametrize(
    ("tag", "charts"),
    [
        ("train/loss", {"Loss"}),
        ("train/loss/D", {"Loss"}),
        ("logged/train/loss", {"Losses that the job logs"}),
        ("Loss/val", {"Losses that the job logs"}),
        ("val_loss", {"Losses that the job logs"}),
        ("Accuracy/val", {"Accuracy that the job logs"}),
        ("val/acc", {"Accuracy that the job logs"}),
        ("train/lr/all", {"Learning rate"}),
        ("amp/loss_scale", {"Loss scale"}),
        ("grad/norm", {"Norm and largest entry, whole model"}),
        ("grad/fc.weight/norm", {"Norm of each layer"}),
        ("grad/norm/norm", {"Norm of each layer"}),
        ("update/fc.weight/ratio", {"Update to weight ratio of each layer"}),
        ("phase/data_seconds", {"Where the step's time goes (seconds)"}),
        ("gpu/0/memory_peak", {"Memory (bytes)"}),
        ("gpu/0:1/power", {"Power (watts)"}),
        ("weight/fc.weight/norm", set()),
    ],
)
def test_each_tag_is_drawn_where_it_belongs(tag, charts):
    assert charts_of(tag) == charts
