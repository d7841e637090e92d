"""One run in numbers, against the same numbers worked out here by hand."""

import math
import statistics
from array import array

import pytest

from gpuwatch.history import comparison
from gpuwatch.history.measures import measure
from gpuwatch.history.past import Past
from gpuwatch.state.records import Scalar
from gpuwatch.state.scalar_tags import Meaning, meaning


def past(**fields):
    made = Past()
    for name, values in fields.items():
        made.fields[name] = (array("q", range(1, len(values) + 1)), array("d", values))
        made.steps = array("q", range(1, len(values) + 1))
    return made


def log(made, tag, *values):
    made.scalars[tag] = [Scalar(tag, 10 * i, value, i) for i, value in enumerate(values, 1)]
    return made


@pytest.mark.parametrize(
    ("tag", "told"),
    [
        ("Accuracy/val", Meaning("validation", "accuracy")),
        ("train_loss", Meaning("train", "loss")),
        ("eval/acc1", Meaning("validation", "accuracy")),
        ("metrics.valid.loss", Meaning("validation", "loss")),
        ("valLoss", Meaning("validation", "loss")),
        ("ValidationAccuracy", Meaning("validation", "accuracy")),
        ("test-acc", Meaning("validation", "accuracy")),
        ("loss", None),
        ("train/lr", None),
        ("value_loss/train", Meaning("train", "loss")),
        ("train_val_loss", None),
        ("closs_trainer", None),
        ("", None),
    ],
)
def test_what_a_tag_measures(tag, told):
    assert meaning(tag) == told


def test_speed_is_the_median_after_warm_up():
    made = past(step_seconds=[9.0] * 10 + [0.1, 0.2, 0.3, 5.0, 0.2])
    found = measure(made)
    assert found.steps_per_second == pytest.approx(1 / statistics.median([0.1, 0.2, 0.3, 5.0, 0.2]))
    assert measure(past(step_seconds=[0.5, 0.25])).steps_per_second == pytest.approx(1 / 0.375), (
        "a run of two steps has a speed too"
    )
    assert measure(past(loss=[1.0])).steps_per_second is None


def test_accuracies_in_per_cent_become_shares_and_the_gap_is_their_difference():
    made = log(log(past(loss=[1.0]), "Accuracy/train", 50.0, 98.2), "Accuracy/val", 70.0, 84.0, math.nan, 82.3)
    found = measure(made)
    assert found.train_accuracy.last == pytest.approx(0.982)
    assert found.validation_accuracy.last == pytest.approx(0.823)
    assert (found.validation_accuracy.best, found.validation_accuracy.best_step) == (pytest.approx(0.84), 20)
    assert found.accuracy_gap == pytest.approx(0.159)
    assert measure(past(loss=[1.0])).accuracy_gap is None


def test_the_loss_of_a_job_that_logs_none_is_the_hooks_own():
    losses = [1.0 / step for step in range(1, 101)]
    found = measure(past(loss=[*losses, math.nan]))
    assert found.train_loss.last == pytest.approx(statistics.fmean(losses[-5:]))
    assert (found.train_loss.best, found.train_loss.best_step) == (0.01, 100)


def test_speed_up_and_saving_are_against_the_first_run():
    base = measure(past(step_seconds=[1 / 155] * 40, torch_allocated_peak_bytes=[4234e6] * 40))
    half = measure(past(step_seconds=[1 / 218] * 40, torch_allocated_peak_bytes=[2376e6] * 40, autocast_dtype=[1.0] * 40))
    first, second = comparison.compare([("fp32", base), ("amp", half)])
    assert (first.speedup_ratio, first.memory_saving_ratio) == (1.0, 0.0)
    assert second.speedup_ratio == pytest.approx(218 / 155)
    assert second.memory_saving_ratio == pytest.approx(0.4388, abs=1e-4)
    assert second.measures.precision == "float16"
    assert comparison.table([first, second])[2][-4:] == ["1.41x", "2,266 MiB", "43.9 %", "none"]


def test_columns_that_nobody_measured_are_left_out():
    heading, line = comparison.table(comparison.compare([("a|b", measure(past(loss=[0.5])))]))
    assert heading == ["run", "steps", "train loss", "precision", "findings"]
    assert line == ["a|b", "1", "0.5", "float32", "none"]
    assert comparison.markdown(comparison.compare([("a|b", measure(past(loss=[0.5])))])).startswith("| run | steps |")
    assert "a&#124;b" in comparison.markdown(comparison.compare([("a|b", measure(past(loss=[0.5])))]))
