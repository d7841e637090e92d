"""The Prometheus rules: right on promtool's own terms, tested one by one, and about series that daemons export."""

import re
from pathlib import Path

import pytest
import yaml

from gpuwatch.detectors.registry import RULES
from gpuwatch.exporters.reference import page
from tests.dashboards.exported import SERIES, TARGET_LABELS
from tests.dashboards.shipped_rules import ALERTS, FILES, RECORDS, TESTS, labels, metrics, promtool, rules

DOCS = Path(__file__).parents[2] / "docs"
ALERT_LABELS = {"alertname", "alertstate"}
#: Rules of the daemon that an alert of the fleet tells by itself, from series that every node has: they are not told twice.
OWN_ALERTS = {
    "records_overwritten": "GpuwatchRecordsOverwritten",  # which says how many
    "exporter_paused": "GpuwatchExporterPaused",
    "sampler_stuck": "GpuwatchSamplerStuck",
    "stalled": "GpuwatchTrainingStalled",
    "straggler": "GpuwatchStragglerRank",
    "spin_wait": "GpuwatchGpuSpinWait",
    "gpu_memory_headroom": "GpuwatchGpuMemoryHeadroomLow",
    "gpu_lost": "GpuwatchGpuLost",
    "gpu_xid": "GpuwatchGpuXidCritical",
    "gpu_ecc": "GpuwatchGpuEccUncorrected",
    "gpu_throttled": "GpuwatchGpuThrottledByHardware",
    "gpu_row_remap": "GpuwatchGpuRowRemapFailed",
}
#: The alert about there being nothing: it fires when its series was never seen.
ABSENT = "GpuwatchAbsent"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_promtool_finds_nothing_to_say(path):
    result = promtool("check", "rules", "--lint-fatal", path)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.name)
def test_the_unit_tests_pass(path):
    result = promtool("test", "rules", path)
    assert result.returncode == 0, result.stdout + result.stderr


def firing(path):
    """(alert, does one fire?, were its own series fed?) of each expectation of a file of unit tests."""
    for case in yaml.safe_load(path.read_text())["tests"]:
        fed = set().union(*(metrics(series["series"]) for series in case["input_series"]))
        for check in case["promql_expr_test"]:
            named = re.search(r'alertname=~?"([^"]+)"', check["expr"])
            fire = {re.search(r'alertname="(\w+)"', sample["labels"])[1] for sample in check["exp_samples"] if named}
            for alert in named[1].split("|") if named else ():
                raw = set().union(
                    *(metrics(RECORDS[m]["expr"]) if m in RECORDS else {m} for m in metrics(ALERTS[alert]["expr"]))
                )
                yield alert, alert in fire, bool(raw & fed) or "(up{" in f"({ALERTS[alert]['expr']}"


@pytest.mark.parametrize("alert", ALERTS)
def test_each_alert_has_a_case_where_it_fires_and_one_where_it_does_not(alert):
    (path,) = [path for path in TESTS if path.name == ALERTS[alert]["file"]]
    cases = [(fires, fed) for name, fires, fed in firing(path) if name == alert]
    assert (True, True) in cases
    assert (False, True) in cases


@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.name)
def test_each_file_has_a_case_in_which_nothing_was_ever_seen(path):
    first = yaml.safe_load(path.read_text())["tests"][0]
    assert not set().union(*(metrics(series["series"]) for series in first["input_series"]))
    (check,) = first["promql_expr_test"]
    assert check["expr"].startswith("ALERTS")
    assert "alertname" not in check["expr"]
    assert [ABSENT in sample["labels"] for sample in check["exp_samples"]] == [True] * (path.name == "daemon.yml")


@pytest.mark.parametrize("alert", ALERTS)
@pytest.mark.parametrize("broken", ["vector(1) < 0", "vector(1)"], ids=["never", "always"])
def test_a_broken_rule_fails_its_tests(tmp_path, alert, broken):
    """The twin of the unit tests: an alert that never fires, or always, does not get past them."""
    file = ALERTS[alert]["file"]
    for path in FILES:
        tree = yaml.safe_load(path.read_text())
        for rule in (rule for group in tree["groups"] for rule in group["rules"]):
            rule.pop("annotations", None)
            if rule.get("alert") == alert:
                rule["expr"] = broken
        (tmp_path / path.name).write_text(yaml.safe_dump(tree))
    (tmp_path / "tests").mkdir()
    suite = yaml.safe_load((TESTS[0].parent / file).read_text())
    suite["tests"] = [case for case in suite["tests"] if alert in str(case["promql_expr_test"])]
    (tmp_path / "tests" / file).write_text(yaml.safe_dump(suite))
    result = promtool("test", "rules", f"tests/{file}", folder=tmp_path)
    assert result.returncode == 1, result.stdout
    assert "FAILED" in result.stdout + result.stderr


@pytest.mark.parametrize("rule", list(rules()), ids=lambda rule: rule.get("alert") or rule["record"])
def test_every_series_and_label_is_one_that_daemons_export(rule):
    known = {}
    for name in metrics(rule["expr"]):
        assert name in SERIES or name in RECORDS, name
        known[name] = SERIES.get(name, set())
    allowed = TARGET_LABELS.union(*known.values())
    if any(name in RECORDS for name in known):
        allowed |= {"run", "rank", "gpu"}
    assert labels(rule["expr"]) <= allowed


@pytest.mark.parametrize("name", SERIES)
def test_the_series_are_those_of_the_reference(name):
    family = re.sub(r"(duration_seconds)_(sum|count|bucket)$", r"\1", name)
    assert f"| `{family}` |" in page()


@pytest.mark.parametrize("rule", list(rules()), ids=lambda rule: rule.get("alert") or rule["record"])
def test_windows_are_long_enough_and_buckets_are_not_matched_by_name(rule):
    for number, unit in re.findall(r"\[(\d+)([smh])", rule["expr"]):
        assert int(number) * {"s": 1, "m": 60, "h": 3600}[unit] >= 4 * 60, "less than four scrapes at one a minute"
    assert not re.search(r"\ble\s*(=|!)", rule["expr"])


def test_recorded_names_say_level_metric_and_operation():
    for name, rule in RECORDS.items():
        level, metric, operation = name.split(":")
        assert level in {"run", "rank", "gpu"}
        assert metric.startswith("gpuwatch_")
        assert re.fullmatch(r"rate5m|mean5m|ratio", operation)
        assert rule["file"] == "recording.yml"


@pytest.mark.parametrize("rule", ALERTS.values(), ids=lambda rule: rule["alert"])
def test_an_alert_says_what_to_do_and_where_it_is_explained(rule):
    assert re.fullmatch(r"Gpuwatch([A-Z][a-z]+)+", rule["alert"])
    assert set(rule["labels"]) == {"severity"}
    assert rule["labels"]["severity"] in {"critical", "warning", "info"}
    assert set(rule["annotations"]) == {"summary", "description", "runbook_url"}
    assert len(rule["annotations"]["summary"]) <= 140
    assert re.search(
        r"\b(stop|restart|kill|reset|drain|check|look|ask|lower|make|give|move|improve|replace[d]?|let|systemctl|shows)\b",
        rule["annotations"]["description"],
        re.IGNORECASE,
    )


@pytest.mark.parametrize("rule", ALERTS.values(), ids=lambda rule: rule["alert"])
def test_the_runbook_is_there(rule):
    url = rule["annotations"]["runbook_url"]
    if "{{" in url:
        for name in re.findall(r'rule=~"([^"]+)"', rule["expr"])[0].split("|"):
            assert (DOCS.parent / url.replace("{{ $labels.rule }}", name)).is_file()
    else:
        path, _, anchor = url.partition("#")
        headings = re.findall(r"^#+ (.+)$", (DOCS.parent / path).read_text(), re.MULTILINE)
        assert anchor in {re.sub(r"[^\w-]", "", heading.lower().replace(" ", "-")) for heading in headings}
    assert f"\n### {rule['alert']}\n" in (DOCS / "alerting.md").read_text()


@pytest.mark.parametrize("rule", ALERTS.values(), ids=lambda rule: rule["alert"])
def test_a_template_uses_no_label_that_the_expression_drops(rule):
    """The labels that an alert has are those that its firing case shows."""
    (path,) = [path for path in TESTS if path.name == rule["file"]]
    shown = re.search(rf'labels: ALERTS\{{alertname="{rule["alert"]}",([^}}]*)\}}', path.read_text())[1]
    kept = set(re.findall(r'(\w+)="', shown)) - ALERT_LABELS
    used = set(re.findall(r"\$labels\.(\w+)", " ".join(rule["annotations"].values())))
    assert used <= kept


def test_every_rule_of_the_daemon_is_routed_once_and_by_its_severity():
    routed = {}
    for severity in ("critical", "warning", "info"):
        rule = ALERTS[f"GpuwatchFinding{severity.capitalize()}"]
        assert rule["labels"]["severity"] == severity
        (names,) = set(re.findall(r'rule=~"([^"]+)"', rule["expr"]))
        assert names.split("|") == sorted(names.split("|"))
        for name in names.split("|"):
            assert name not in routed
            routed[name] = severity
    by_own_alert = {finding for finding in OWN_ALERTS if finding in {rule.name for rule in RULES}}
    assert not by_own_alert & set(routed)
    assert set(OWN_ALERTS.values()) <= set(ALERTS)
    assert routed == {rule.name: rule.severity for rule in RULES if rule.name not in by_own_alert}
