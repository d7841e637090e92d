"""A message that is kept gives each step the same bytes as a new one."""

import random

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary

from gpuwatch.exporters import summaries
from gpuwatch.exporters.step_event import StepEvent


def anew(points, wall_time, step):
    summary = Summary()
    for tag, value in points:
        summaries.add_scalar(summary, tag, value)
    return Event(wall_time=wall_time, step=step, summary=summary)


def test_whatever_the_step_before_had():
    rng = random.Random(1)
    kept = StepEvent()
    values = [0.0, -0.0, 1e300, -1e300, float("inf"), float("nan"), 1e-45, 0.1]
    same = 0
    before = None
    for step in range(1, 500):
        tags = ["train/loss", "grad/norm", "phase/step_seconds", "amp/loss_scale"][: rng.choice([1, 3, 3, 3, 4])]
        points = [(tag, rng.choice(values)) for tag in tags]
        event = kept.of(points)
        event.wall_time, event.step = step / 7, step
        assert event.SerializeToString() == anew(points, step / 7, step).SerializeToString()
        same += tags == before
        before = tags
    assert same > 100


def test_a_step_without_points_is_an_event_without_values():
    kept = StepEvent()
    kept.of([("train/loss", 1.0)])
    assert len(kept.of([]).summary.value) == 0
    assert [value.tag for value in kept.of([("train/loss", 1.0)]).summary.value] == ["train/loss"]
