"""The committed dashboards: what the generator writes, and in order by the rules of dashboard-linter, which is Go only."""

import itertools
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard

from tests.dashboards.exported import SERIES, TARGET_LABELS
from tests.dashboards.shipped_rules import labels, metrics

FOLDER = Path(__file__).parents[2] / "dashboards"
DASHBOARDS = {path.name: json.loads(path.read_text()) for path in sorted((FOLDER / "grafana").glob("*.json"))}
#: Every unit that the dashboards use, as Grafana knows it.
UNITS = {"none", "percentunit", "watt", "celsius", "hertz", "bytes", "Bps", "cps", "s"}
#: Series of Prometheus itself, and a gauge's comparison with itself, need no series of ours.
OF_PROMETHEUS = {"ALERTS", "up"}
each = pytest.mark.parametrize("board", DASHBOARDS.values(), ids=DASHBOARDS.keys())


def panels(board):
    return [panel for panel in board["panels"] if panel["type"] != "row"]


def expressions(board):
    return [target["expr"] for panel in panels(board) for target in panel["targets"]]


def test_there_are_three():
    assert set(DASHBOARDS) == {"gpuwatch-fleet.json", "gpuwatch-run.json", "gpuwatch-layers.json"}
    assert len({board["uid"] for board in DASHBOARDS.values()}) == len({board["title"] for board in DASHBOARDS.values()}) == 3


def test_generating_them_again_gives_the_same_bytes(tmp_path):
    command = [sys.executable, FOLDER / "src" / "generate.py", tmp_path]
    subprocess.run(command, capture_output=True, timeout=60, check=True)
    assert {path.name for path in tmp_path.iterdir()} == set(DASHBOARDS)
    for path in tmp_path.iterdir():
        assert path.read_bytes() == (FOLDER / "grafana" / path.name).read_bytes(), "run: python dashboards/src/generate.py"


@each
def test_the_sdk_knows_every_key(board):
    """A key that is lost on the way through the SDK's model is one that Grafana does not know: a typo."""
    known = json.loads(JSONEncoder().encode(Dashboard.from_json(board)))
    lost = sorted(set(paths(board)) - set(paths(known)))
    annotation = "annotations.list."  # Prometheus' own additions to an annotation
    assert [path for path in lost if path not in {annotation + key for key in ("titleFormat", "textFormat", "step")}] == ["id"]


def paths(tree, prefix=""):
    """Every key of a JSON tree by its path; the items of a list share theirs."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield f"{prefix}{key}"
            yield from paths(value, f"{prefix}{key}.")
    elif isinstance(tree, list):
        for item in tree:
            yield from paths(item, prefix)


def test_a_typo_is_lost():
    board = json.loads(json.dumps(DASHBOARDS["gpuwatch-run.json"]))
    panels(board)[0]["fieldConfig"]["defaults"]["unitt"] = "s"
    known = json.loads(JSONEncoder().encode(Dashboard.from_json(board)))
    assert "panels.fieldConfig.defaults.unitt" in set(paths(board)) - set(paths(known))


@each
def test_the_head(board):
    assert board["schemaVersion"] == 41
    assert board["editable"] is False
    assert board["id"] is None
    assert "__inputs" not in board
    assert re.fullmatch(r"gpuwatch-[a-z]+", board["uid"])
    assert board["tags"] == ["gpuwatch"]
    (link,) = board["links"]
    assert (link["type"], link["tags"], link["keepTime"], link["includeVars"]) == ("dashboards", ["gpuwatch"], True, True)


@each
def test_the_variables(board):
    variables = {variable["name"]: variable for variable in board["templating"]["list"]}
    source = variables.pop("datasource")
    assert (source["type"], source["query"], source["label"]) == ("datasource", "prometheus", "Data source")
    assert list(variables) in (["job", "instance", "gpu"], ["job", "instance", "run", "rank"])
    for variable in variables.values():
        assert variable["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert (variable["multi"], variable["includeAll"], variable["allValue"]) == (True, True, ".+")
        assert variable["refresh"] == 2, "values are looked up again when the time range changes"
        metric, label = re.fullmatch(r"label_values\((\w+)(?:\{.*\})?, (\w+)\)", variable["query"]["query"]).groups()
        assert label in SERIES[metric]
        assert labels(variable["query"]["query"]) <= SERIES[metric]


@each
def test_ids_are_unique_and_nothing_overlaps(board):
    ids = [panel["id"] for panel in board["panels"]]
    assert len(set(ids)) == len(ids)
    taken = {}
    for panel in board["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        for cell in itertools.product(range(place["x"], place["x"] + place["w"]), range(place["y"], place["y"] + place["h"])):
            assert taken.setdefault(cell, panel["title"]) == panel["title"], cell
    assert not {(0, y) for y in range(max(y for _, y in taken))} - set(taken), "an empty line"
    for panel in panels(board):
        refs = [target["refId"] for target in panel["targets"]]
        assert refs
        assert len(set(refs)) == len(refs)


@each
def test_every_panel_says_what_it_shows(board):
    for panel in panels(board):
        title = panel["title"]
        assert title
        assert panel["description"].endswith("."), title
        assert len(panel["description"]) > 15, title
        assert panel["fieldConfig"]["defaults"]["unit"] in UNITS, title
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}, title
        assert panel["type"] in {"timeseries", "stat", "table", "bargauge", "heatmap"}, title
        for target in panel["targets"]:
            assert target["datasource"] == panel["datasource"]
            if panel["type"] == "timeseries":
                assert target["legendFormat"], f"{title}: without a legend each curve is its whole set of labels"


@each
def test_every_query_keeps_to_the_rules(board):
    for expression in expressions(board):
        for selector in re.findall(r"\b(?:gpuwatch_\w+|ALERTS|up)\{([^}]*)\}", expression):
            assert 'job=~"$job",instance=~"$instance"' in selector, expression
        assert not re.search(r"gpuwatch_\w+(?![\w{])", expression), f"without matchers: {expression}"
        for call, window in re.findall(r"\b(rate|increase|irate)\([^\[\]]*\[([^\]]+)\]", expression):
            assert window == "$__rate_interval" or (call == "increase" and re.fullmatch(r"\d+h", window)), expression
        counters = re.findall(r"gpuwatch_\w+_(?:total|bucket)\b", expression)
        inside = re.findall(r"\b(?:rate|increase)\((gpuwatch_\w+_(?:total|bucket))\b", expression)
        assert counters == inside, f"a counter outside of rate or increase: {expression}"
        assert not re.search(r"\ble\s*(=|!)", expression)


@each
def test_every_series_and_label_is_one_that_daemons_export(board):
    for panel in panels(board):
        for target in panel["targets"]:
            names = metrics(target["expr"])
            assert names <= set(SERIES), target["expr"]
            assert names or any(name in target["expr"] for name in OF_PROMETHEUS)
            known = TARGET_LABELS.union(*(SERIES[name] for name in names))
            if "ALERTS" in target["expr"]:
                known |= {"alertname", "alertstate"}
            assert labels(target["expr"]) <= known, target["expr"]
            legend = set(re.findall(r"\{\{\s*(\w+)\s*\}\}", target["legendFormat"]))
            assert legend <= known | {"le"}, target


def test_the_dashboards_need_no_recording_rules():
    assert not [e for board in DASHBOARDS.values() for e in expressions(board) if re.search(r"\w:gpuwatch_", e)]
