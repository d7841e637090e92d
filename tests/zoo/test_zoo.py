"""A dozen programs of the zoo, and what its scores count. `make zoo` runs all of it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from gpuwatch.state.findings import Finding
from tests.zoo import score, table
from tests.zoo.keeper import Outcome
from tests.zoo.programs import PROGRAMS

pytestmark = pytest.mark.timeout(240)
ROOT = Path(__file__).resolve().parents[2]
HEALTHY = ["mlp_sgd", "lstm_clipped", "gan_on_a_ring", "fp16_scaler_probing", "heavy_tailed_targets"]
BROKEN = [
    "distance_of_equal_points",
    "normalisation_lost",
    "labels_shuffled",
    "sigmoid_stack",
    "overflow_for_ever",
    "clipped_while_scaled",
    "zero_grad_missing",
    "never_back_to_train",
]


@pytest.fixture(scope="module")
def document(tmp_path_factory):
    """What `python -m tests.zoo --json` says of these programs."""
    file = tmp_path_factory.mktemp("zoo") / "zoo.json"
    command = [sys.executable, "-m", "tests.zoo", "--check", "--json", str(file), "--only", *HEALTHY, *BROKEN]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=220, check=False)
    assert file.exists(), done.stderr
    found = json.loads(file.read_text())
    assert done.returncode == (1 if found["missed"] else 0)
    return {program["name"]: program for program in found["programs"]}


@pytest.mark.slow
@pytest.mark.parametrize("name", HEALTHY)
def test_a_healthy_training_raises_no_alarm(document, name):
    # On a busy machine steps do get slower for a while: a note of that (info) is true.
    assert [finding for finding in document[name]["false"] if finding[1] != "info"] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_training_is_found(document, name):
    assert document[name]["missed"] == []
    assert [finding for finding in document[name]["false"] if finding[1] != "info"] == []


def test_half_of_the_programs_are_held_out_and_each_rule_of_a_cpu_has_two():
    halves = {half: [p for p in PROGRAMS.values() if p.half == half] for half in "AB"}
    assert all(len(programs) >= 30 for programs in halves.values())
    assert all(sum(p.is_healthy for p in programs) >= 20 for programs in halves.values())
    for rule in {rule for p in PROGRAMS.values() for rule in p.expects}:
        assert sum(rule in p.expects for p in PROGRAMS.values()) >= 2, rule
    assert all(p.source for p in PROGRAMS.values() if not p.is_healthy)


def test_the_tables_go_between_their_marks(tmp_path):
    file = tmp_path / "zoo.md"
    file.write_text(f"Before.\n\n{table.BEGIN}\n\nold\n\n{table.END}\n\nAfter.\n")
    table.replace_table(file, "new")
    assert file.read_text() == f"Before.\n\n{table.BEGIN}\n\nnew\n\n{table.END}\n\nAfter.\n"
    bare = tmp_path / "bare.md"
    table.replace_table(bare, "new")
    assert bare.read_text() == "new\n"


def finding(rule, step, severity="warning"):
    return Finding(rule, severity, step, step, step, "", 0.0, 0.0, "", "")


def judged(name, *findings):
    return score.judge(PROGRAMS[name], Outcome(list(findings), 300, 1.0), {"loss_spike", "loss_diverging", "overfitting"})


def test_what_counts_as_found_missed_and_false():
    onset = PROGRAMS["one_bad_batch"].onset
    verdict = judged("one_bad_batch", finding("loss_spike", onset + 2), finding("loss_spike", onset + 40))
    assert (verdict.found, verdict.missed, verdict.false) == ({"loss_spike": 2}, [], [])
    early = judged("one_bad_batch", finding("loss_spike", onset - 1))
    assert (early.missed, [f.rule for f in early.false]) == (["loss_spike"], ["loss_spike"])
    allowed = judged("one_bad_batch", finding("exploding_gradient", onset), finding("loss_spike", onset))
    assert allowed.false == []
    foreign = judged("one_bad_batch", finding("loss_spike", onset), finding("overfitting", onset, "info"))
    assert [f.rule for f in foreign.false] == ["overfitting"]


def test_a_false_finding_has_its_gravest_severity():
    verdict = judged("mlp_sgd", finding("loss_spike", 3, "info"), finding("loss_spike", 9), finding("loss_spike", 12, "info"))
    assert [(f.step, f.severity) for f in verdict.alarms] == [(9, "warning")]


def test_advice_is_no_false_alarm_where_no_label_speaks_of_it():
    assert judged("mlp_sgd", finding("no_weight_decay", 250, "info")).false == []


def test_recall_precision_and_the_limits():
    verdicts = [
        judged("one_bad_batch", finding("loss_spike", PROGRAMS["one_bad_batch"].onset + 4)),
        judged("labels_shuffled"),
        judged("mlp_sgd", finding("loss_spike", 9)),
    ]
    *_, together = score.scores(verdicts)
    assert (together.expected, together.found, together.false) == (2, 1, 1)
    assert (together.recall, together.precision, together.steps) == (0.5, 0.5, 4)
    short = score.shortfalls(verdicts)
    assert [sentence.split(",")[0] for sentence in short] == [
        "recall is 0.500",
        "precision is 0.500",
        "mlp_sgd is healthy",
    ]


def test_a_prompt_rule_that_is_slow_misses_its_number():
    onset = PROGRAMS["constant_batch"].onset
    late = [finding("nonfinite_loss", onset + 21), finding("nonfinite_gradient", onset)]
    verdict = score.judge(PROGRAMS["constant_batch"], Outcome(late, 300, 1.0), {"nonfinite_loss", "nonfinite_gradient"})
    assert score.shortfalls([verdict]) == ["nonfinite_loss needs 21 steps, more than 20"]
