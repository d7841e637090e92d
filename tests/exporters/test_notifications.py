"""Findings reach a real command and a real HTTP server; whatever these do, the daemon neither waits nor tells a secret."""

import http.server
import json
import logging
import sys
import threading
import time

import pytest

from gpuwatch import config
from gpuwatch.config import ConfigError, Notify
from gpuwatch.exporters import delivery, notifications
from gpuwatch.selfstats import SelfStats
from gpuwatch.state.findings import Finding
from gpuwatch.state.identity import Hello, Identity
from gpuwatch.state.store import State
from tests.running_daemon import RunningDaemon, wait_until

SECRET = "c4n4ry-secret"


class Receiver:
    """A webhook on loopback that keeps what it gets and answers as it is told: `answers` are used up, then 204."""

    def __init__(self):
        self.received, self.headers, self.answers = [], [], []
        self.gate = threading.Event()
        self.gate.set()
        receiver = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):  # the name that http.server asks for
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.gate.wait(60)
                receiver.headers.append((self.path, dict(self.headers)))
                status = receiver.answers.pop(0) if receiver.answers else 204
                if status == 204:
                    receiver.received.append(json.loads(body))
                self.send_response(status)
                if status == 302:
                    self.send_header("Location", "http://127.0.0.1:1/elsewhere")
                self.end_headers()

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/hook/{SECRET}?key={SECRET}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True)
        self.thread.start()

    def close(self):
        self.gate.set()
        self.server.shutdown()
        self.server.server_close()
        self.thread.join(10)


@pytest.fixture
def receiver():
    made = Receiver()
    yield made
    made.close()


@pytest.fixture
def state(tmp_path):
    state = State(str(tmp_path / "runs"))
    yield state
    state.close()


@pytest.fixture
def notify(state, monkeypatch):
    """notify(**settings) -> the daemon's own counters; retries follow at once."""
    monkeypatch.setattr(notifications, "FIRST_RETRY_SECONDS", 0.01)
    made = []

    def start(**settings):
        stats = SelfStats()
        made.append(notifications.Notifications(Notify(**settings), state, stats))
        return stats

    yield start
    for one in made:
        one.stop()


def finding(rule="nonfinite_loss", severity="critical", first_step=7, value=float("nan")):
    return Finding(rule, severity, first_step, first_step, first_step, "loss", value, 0.0, "It is `NaN`; $(reboot).", "Stop.")


def open_run(state):
    hello = Hello(run="digits", token="", rank=0, world_size=1, ring_id=1, monotonic_ns=0, wall_ns=0)
    return state.open_run(hello, Identity(0, 1, 1))


def counted(stats, target="webhook"):
    return {result: stats.value("notifications", f"{target}/{result}") for result in ("sent", "failed", "dropped")}


def test_a_finding_is_told_when_it_opens_and_when_it_closes(receiver, notify, state):
    stats = notify(webhook=receiver.url)
    run, found = open_run(state), finding()
    state.find(run, found)
    found.state, found.last_step = "closed", 9
    state.find(run, found)
    wait_until(lambda: len(receiver.received) == 2)
    first, last = receiver.received
    assert (first["rule"], first["severity"], first["state"], first["run"], first["rank"]) == (
        "nonfinite_loss",
        "critical",
        "active",
        "digits",
        0,
    )
    assert (first["value"], first["threshold"], first["first_step"]) == ("nan", 0.0, 7)
    assert (last["state"], last["last_step"]) == ("closed", 9)
    wait_until(lambda: counted(stats) == {"sent": 2, "failed": 0, "dropped": 0})
    path, headers = receiver.headers[0]
    assert path == f"/hook/{SECRET}?key={SECRET}"
    assert headers["Content-Type"] == "application/json"


def test_the_filter_goes_by_severity_and_one_that_grows_is_told_then(receiver, notify, state):
    notify(webhook=receiver.url, severity="warning")
    run = open_run(state)
    quiet, growing = finding("hook_overhead", "info"), finding("exploding_gradient", "info")
    for found in (quiet, growing):
        state.find(run, found)
    growing.severity = "critical"
    state.find(run, growing)
    for found in (quiet, growing):
        found.state = "closed"
        state.find(run, found)
    wait_until(lambda: len(receiver.received) == 2)
    time.sleep(0.1)
    told = [(message["rule"], message["severity"], message["state"]) for message in receiver.received]
    assert told == [("exploding_gradient", "critical", "active"), ("exploding_gradient", "critical", "closed")]


def test_a_server_that_fails_is_asked_again(receiver, notify, state):
    receiver.answers = [500, 429, 503]
    stats = notify(webhook=receiver.url)
    state.find(open_run(state), finding())
    wait_until(lambda: receiver.received)
    wait_until(lambda: counted(stats) == {"sent": 1, "failed": 0, "dropped": 0})
    assert len(receiver.headers) == 4
    assert stats.components()["notify"].up


@pytest.mark.parametrize("status", [302, 400, 404])
def test_a_server_that_refuses_is_not_asked_again(receiver, notify, state, status):
    receiver.answers = [status]
    stats = notify(webhook=receiver.url)
    state.find(open_run(state), finding())
    wait_until(lambda: counted(stats)["failed"] == 1)
    assert len(receiver.headers) == 1
    assert not stats.components()["notify"].up
    assert stats.components()["notify"].last_error == f"webhook: HTTP {status}"


def test_it_gives_up_in_the_end_and_says_no_secret(notify, state, caplog):
    caplog.set_level(logging.DEBUG)
    stats = notify(webhook=f"http://127.0.0.1:1/{SECRET}", attempts=3)
    state.find(open_run(state), finding())
    wait_until(lambda: counted(stats)["failed"] == 1)
    said = caplog.text + stats.components()["notify"].last_error
    assert "could not be delivered" in said
    assert SECRET not in said


def test_a_server_that_hangs_holds_nobody_up_and_what_is_too_much_is_dropped(receiver, notify, state):
    receiver.gate.clear()
    stats = notify(webhook=receiver.url, queue=4)
    run = open_run(state)
    began = time.monotonic()
    for step in range(50):
        state.find(run, finding(f"rule{step}", first_step=step + 1))
    assert time.monotonic() - began < 5.0, "find() must not wait for the webhook, which answers nobody for a minute"
    dropped = counted(stats)["dropped"]
    assert 45 <= dropped <= 46, "four wait, and one may be on its way"
    receiver.gate.set()
    wait_until(lambda: counted(stats)["sent"] == 50 - dropped)


def test_the_token_comes_from_a_file(receiver, notify, state, tmp_path):
    token = tmp_path / "token"
    token.write_text(f"{SECRET}\n")
    notify(webhook=receiver.url, token_file=str(token))
    state.find(open_run(state), finding())
    wait_until(lambda: receiver.received)
    assert receiver.headers[0][1]["Authorization"] == f"Bearer {SECRET}"


def test_a_token_file_that_is_not_there_is_a_failure_with_a_name(notify, state, receiver):
    stats = notify(webhook=receiver.url, token_file="/nowhere/token", attempts=1)
    state.find(open_run(state), finding())
    wait_until(lambda: counted(stats)["failed"] == 1)
    assert "token file" in stats.components()["notify"].last_error
    assert not receiver.headers


def test_a_command_gets_the_json_and_no_shell(notify, state, tmp_path):
    out = tmp_path / "out; echo 1"
    program = [sys.executable, "-c", "import sys; open(sys.argv[1], 'a').write(sys.stdin.read())", str(out)]
    stats = notify(command=program)
    state.find(open_run(state), finding())
    wait_until(lambda: counted(stats, "command")["sent"] == 1)
    (line,) = out.read_text().splitlines()
    message = json.loads(line)
    assert (message["rule"], message["summary"]) == ("nonfinite_loss", "It is `NaN`; $(reboot).")
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("out")] == ["out; echo 1"]


@pytest.mark.parametrize(
    ("command", "reason"),
    [(["/nowhere/program"], "No such file"), ([sys.executable, "-c", "raise SystemExit(3)"], "ended with 3")],
)
def test_a_command_that_fails(notify, state, command, reason):
    stats = notify(command=command, attempts=2)
    state.find(open_run(state), finding())
    wait_until(lambda: counted(stats, "command")["failed"] == 1)
    assert reason in stats.components()["notify"].last_error


def test_a_command_that_hangs_is_ended_with_its_children(tmp_path):
    """Its child has the pipe too, and would keep us waiting."""
    child = tmp_path / "child"
    code = f"import os, time; open({str(child)!r}, 'w').write(str(os.fork() or os.getpid())); time.sleep(600)"
    with pytest.raises(delivery.DeliveryError, match=r"more than 2 s"):
        delivery.Command([sys.executable, "-c", code], 2.0).send(b"{}")
    pid = int(child.read_text())
    wait_until(lambda: not _lives(pid))


def _lives(pid):
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_without_a_target_nothing_is_registered(state):
    stats = SelfStats()
    notifications.Notifications(Notify(), state, stats)
    assert state.on_finding == []
    assert "notify" not in stats.components()


@pytest.mark.parametrize("url", ["ftp://host/x", "https://", "no address", "https://user:word@host/", "http://h/a b"])
def test_addresses_that_make_no_sense_are_refused(url):
    with pytest.raises(ConfigError, match=r"notify\.webhook"):
        config.load(environ={}, flags={"notify.webhook": url})


def test_a_command_in_the_environment_is_split_like_a_shell_would():
    loaded = config.load(environ={"GPUWATCH_NOTIFY_COMMAND": "notify-send --app 'gpu watch'"})
    assert loaded.notify.command == ["notify-send", "--app", "gpu watch"]


def test_a_daemon_tells_of_its_runs(tmp_path, receiver):
    """A real daemon, a real run that breaks, a real webhook; its counters are on /metrics, its secret nowhere."""
    import subprocess

    daemon = RunningDaemon(tmp_path, notify__webhook=receiver.url)
    try:
        script = tmp_path / "breaks.py"
        script.write_text(
            "import torch\n"
            "weight = torch.nn.Parameter(torch.ones(3))\n"
            "optimizer = torch.optim.SGD([weight], lr=0.1)\n"
            "for step in range(30):\n"
            "    optimizer.zero_grad()\n"
            "    (weight.sum() * (float('nan') if step > 20 else 1.0)).backward()\n"
            "    optimizer.step()\n"
        )
        run = [sys.executable, "-m", "gpuwatch", "run", "--name", "breaks", "--", sys.executable, str(script)]
        environment = {"GPUWATCH_SOCKET": str(daemon.socket)}
        import os

        subprocess.run(run, env={**os.environ, **environment}, cwd=tmp_path, timeout=100, check=True, capture_output=True)
        wait_until(lambda: any(message["rule"] == "nonfinite_loss" for message in receiver.received), 30)
        sent = 'gpuwatch_notifications_total{result="sent",target="webhook"}'
        other = 'gpuwatch_notifications_total{target="webhook",result="sent"}'
        wait_until(lambda: max(daemon.metrics().get(sent, 0), daemon.metrics().get(other, 0)) >= 1)
        assert receiver.received[0]["run"] == "breaks"
    finally:
        daemon.end()
    assert SECRET not in daemon.log.read_text()
