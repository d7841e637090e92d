"""`gpuwatch explain`: one text with docs/rules/."""

import json

import pytest

from gpuwatch.detectors.registry import BY_NAME
from tests.cli.conftest import ROOT


@pytest.mark.parametrize("rule", ["nonfinite_loss", "unscaled_clipping"])
def test_the_page_in_the_documents_is_what_is_printed(gpuwatch, rule):
    assert gpuwatch("explain", rule).stdout == (ROOT / "docs" / "rules" / f"{rule}.md").read_text()


def test_headings_are_bold_where_colours_are_wanted(gpuwatch, environ):
    assert gpuwatch("explain", "loss_spike", env={**environ, "FORCE_COLOR": "1"}).stdout.startswith("\x1b[1m# loss_spike")
    assert "\x1b" not in gpuwatch("explain", "loss_spike", env={**environ, "FORCE_COLOR": "1", "NO_COLOR": "1"}).stdout


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("loss_spikes", "no rule 'loss_spikes'; did you mean 'loss_spike'?"),
        ("x", "no rule 'x'; gpuwatch explain lists them"),
    ],
)
def test_a_rule_that_is_not_there(gpuwatch, name, sentence):
    result = gpuwatch("explain", name)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == f"Error: {sentence}\n"


def test_without_a_rule_all_are_listed(gpuwatch):
    assert [line.split()[0] for line in gpuwatch("explain").stdout.splitlines()] == list(BY_NAME)


def test_rules_are_completed_in_the_shell(gpuwatch, environ):
    asked = {**environ, "_GPUWATCH_COMPLETE": "bash_complete", "COMP_WORDS": "gpuwatch explain loss_s", "COMP_CWORD": "2"}
    assert gpuwatch(env=asked).stdout.splitlines() == ["plain,loss_spike", "plain,loss_scale_collapse"]


def test_rules_as_json(gpuwatch):
    everything = json.loads(gpuwatch("explain", "--json").stdout)
    assert [each["rule"] for each in everything] == list(BY_NAME)
    assert {each["severity"] for each in everything} == {"critical", "warning", "info"}
    (one,) = json.loads(gpuwatch("explain", "--json", "loss_spike").stdout)
    assert one["page"].startswith("# loss_spike")
    assert one["title"] in one["page"]
