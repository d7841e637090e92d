"""What `gpuwatch run --amp-probe` and `--lr-find` say at the end of the command."""

import sys

import pytest

from gpuwatch.cli import experiments
from tests.cli.conftest import LOOP


def test_both_results_stand_before_the_last_sentence(gpuwatch, tmp_path):
    asked = ("run", "--amp-probe", "--lr-find", "--name", "x", "--logdir", tmp_path / "runs", "--", sys.executable, LOOP)
    ran = gpuwatch(*asked, "plain", "--batches", "300")
    assert ran.returncode == 0, ran.stderr
    *_, found, probed, where = [line for line in ran.stderr.splitlines() if line.startswith("gpuwatch: ")]
    assert found.startswith("gpuwatch: range test: ")
    assert probed.startswith("gpuwatch: AMP probe: bfloat16 ")
    assert probed.endswith(" 42 batches were dropped")
    assert where.startswith("gpuwatch: see ")


def test_a_command_that_was_asked_for_none_says_nothing_of_them(gpuwatch, tmp_path):
    ran = gpuwatch("run", "--logdir", tmp_path / "runs", "--", sys.executable, LOOP, "plain", "--batches", "20")
    assert "probe" not in ran.stderr
    assert "range test" not in ran.stderr


PROBED = {"amp_variant": "bfloat16", "amp_speedup_ratio": 1.5, "amp_speedup_low": 1.4, "amp_speedup_high": 1.62}


@pytest.mark.parametrize(
    ("facts", "told"),
    [
        (
            {**PROBED, "amp_memory_saving_ratio": 0.25, "amp_probe_dropped_batches": 42, "amp_probe_failed": ""},
            "AMP probe: bfloat16 1.50x as fast as float32 (95 %: 1.40 to 1.62), memory saved 25.0%; 42 batches were dropped",
        ),
        ({**PROBED, "amp_probe_dropped_batches": 1}, "(95 %: 1.40 to 1.62); 1 batch was dropped"),
        ({"amp_probe_failed": "a forward hook of its own on Linear"}, "no AMP probe: a forward hook of its own on Linear"),
        ({}, "no AMP probe: the command ended before it was over; where it had begun in float32, its steps under autocast"),
    ],
)
def test_an_amp_probe(facts, told):
    assert told in experiments.amp_probe(facts)


FOUND = {"lr_find_points": 60, "lr_find_diverged": True, "lr_find_suggestion": 0.0123, "lr_find_minimum_tenth": 0.05}


@pytest.mark.parametrize(
    ("facts", "told"),
    [
        (FOUND, "range test: suggested learning rate 0.012, a tenth of the minimum 0.05 (60 steps until the loss diverged)"),
        ({"lr_find_points": 100, "lr_find_diverged": False}, "range test: no suggestion: the loss fell nowhere (100 steps)"),
        ({**FOUND, "lr_find_diverged": False, "lr_find_cut_short": True}, "(60 steps, CUT SHORT: the command ended in the"),
        ({"lr_find_failed": "no loss was seen"}, "no range test: no loss was seen"),
        ({}, "no range test: the command ended before it was over"),
    ],
)
def test_a_range_test(facts, told):
    assert told in experiments.range_test(facts)
