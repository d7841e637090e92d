"""A real broken run, and what comes of it: an alert that somebody is told, and dashboards that have something to show."""

import pytest

from gpuwatch.detectors.registry import BY_NAME
from tests.dashboards.stack import RUN
from tests.dashboards.test_grafana import DASHBOARDS, panels
from tests.running_daemon import wait_until

pytestmark = pytest.mark.slow
#: Panels whose queries have no series here, and why.
WITHOUT_SERIES = {"Torch's device memory": "torch has no CUDA device here"}
#: Queries that have series only once something is wrong begin with one of these.
OF_TROUBLE = ("ALERTS", "gpuwatch_train_alert_active")


def queries(*, of_trouble):
    """(panel, expression) of every query of the dashboards, as Grafana sends it with each variable at "All"."""
    for board in DASHBOARDS.values():
        for panel in panels(board):
            for target in panel["targets"]:
                if panel["title"] not in WITHOUT_SERIES and target["expr"].startswith(OF_TROUBLE) == of_trouble:
                    yield panel["title"], filled_in(target["expr"])


def filled_in(expression):
    for variable in ("job", "instance", "gpu", "run", "rank"):
        expression = expression.replace(f"${variable}", ".+")
    return expression.replace("$__rate_interval", "10s")


def all_answer(server, asked, seconds):
    """Until each of these queries has returned series."""
    empty = list(asked)
    assert empty

    def answered(server):
        empty[:] = [each for each in empty if not server.get("query", query=each[1])["result"]]
        return not empty

    try:
        server.until(answered, seconds)
    except AssertionError:
        pytest.fail(f"no series: {empty}")


def test_every_query_of_the_dashboards_returns_series(stack):
    stack.prometheus.until(lambda server: server.query("gpuwatch_gpu_process_info{run!=''}"), 60)
    all_answer(stack.prometheus, queries(of_trouble=False), 30)


def test_no_panel_is_excused_that_is_not_there():
    assert set(WITHOUT_SERIES) <= {panel["title"] for board in DASHBOARDS.values() for panel in panels(board)}


def test_a_run_that_breaks_is_told_to_somebody(stack):
    stack.prometheus.until(lambda server: server.query("gpuwatch_train_steps_total > 0"), 60)
    assert not stack.webhook.told("GpuwatchFindingCritical")
    stack.breaks.touch()
    (alert,) = wait_until(lambda: stack.webhook.told("GpuwatchFindingCritical")[:1], 40)
    rule = alert["labels"]["rule"]
    assert BY_NAME[rule].severity == "critical"
    address = stack.daemon.metrics_url.removeprefix("http://").removesuffix("/metrics")
    assert alert["status"] == "firing"
    assert alert["labels"] == {
        "alertname": "GpuwatchFindingCritical",
        "severity": "critical",
        "job": "gpuwatch",
        "instance": address,
        "run": RUN,
        "rank": "0",
        "rule": rule,
    }
    assert alert["annotations"] == {
        "summary": f"{rule} in run {RUN}, rank 0",
        "description": "The training is being ruined as it runs. Stop it and return to a checkpoint from before the finding. "
        f"On {address}, `gpuwatch alerts {RUN}` has the step, the layer and the numbers; "
        f"`gpuwatch explain {rule}` says what to do.",
        "runbook_url": f"docs/rules/{rule}.md",
    }
    assert stack.prometheus.query(f'gpuwatch_train_alerts_total{{rule="{rule}"}} > 0')
    all_answer(stack.prometheus, queries(of_trouble=True), 30)
