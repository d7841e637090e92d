"""The rules' pages: one source, complete, and the same in docs/rules/."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import msgspec
import pytest

from gpuwatch.detectors import pages
from gpuwatch.detectors.registry import BY_NAME, DEFAULTS, RULES, thresholds
from gpuwatch.state.findings import SEVERITIES

FOLDER = Path(__file__).parents[2] / "docs" / "rules"
#: contract.md: the ids are fixed; a rule under another name would be unknown to dashboards and alert rules.
CONTRACT = set(
    """nonfinite_loss nonfinite_gradient exploding_gradient vanishing_gradient dead_layer loss_spike loss_diverging loss_plateau
    update_ratio_high update_ratio_low adam_second_moment overfitting loss_scale_collapse amp_skip_rate amp_underflow
    unscaled_clipping amp_no_speedup amp_unused gradients_not_zeroed eval_mode_training train_mode_validation unused_parameters
    parameters_not_updated replica_divergence no_weight_decay data_starvation gpu_idle step_time_regression straggler stalled
    spin_wait gpu_memory_headroom memory_leak memory_fragmentation out_of_memory gpu_lost gpu_xid gpu_ecc gpu_throttled
    gpu_row_remap hook_overhead records_overwritten exporter_paused sampler_stuck""".split()
)


def test_the_folder_is_what_the_generator_writes() -> None:
    spec = importlib.util.spec_from_file_location("generate", FOLDER / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    expected = generate.contents()
    assert {path.name for path in FOLDER.glob("*.md")} == set(expected)
    for name, text in expected.items():
        assert (FOLDER / name).read_text(encoding="utf-8") == text, f"run python docs/rules/generate.py ({name})"


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_a_rule_is_complete(rule: type) -> None:
    page = pages.page(rule)
    assert rule.name in CONTRACT
    assert rule.severity in SEVERITIES
    assert rule.__module__ == f"gpuwatch.detectors.rules.{rule.name}", "one rule a file, named after it"
    assert [line for line in page.splitlines() if line.startswith("## ")] == [
        "## What it means",
        "## The test",
        "## What to do",
        "## When it is wrong",
        "## Evidence and thresholds",
    ]
    for section in page.split("\n## ")[1:]:
        assert len(section.partition("\n")[2].split()) >= 10, f"{section.splitlines()[0]} says next to nothing"
    for name in DEFAULTS[rule.name]:
        assert f"| `{name}` |" in page
        assert page.count(f"`{name}`") > 1, f"{name} is not explained in the text"
    assert pages.title(rule).endswith(".")


def test_names_are_unique() -> None:
    assert len(BY_NAME) == len(RULES)


@pytest.mark.parametrize("given", [{"sigmas": -1.0}, {"sigmas": "many"}, {"sigma": 3.0}])
def test_a_wrong_threshold_is_refused_with_its_rule(given: dict) -> None:
    with pytest.raises(ValueError, match=r"rules\.loss_spike"):
        thresholds(BY_NAME["loss_spike"], given)


def test_defaults_are_what_a_rule_uses() -> None:
    for rule in RULES:
        assert msgspec.to_builtins(thresholds(rule, {})) == DEFAULTS[rule.name]
