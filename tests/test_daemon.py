"""The daemon as a process: how it starts, what it says, how it ends, and that its parts fail alone."""

import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from gpuwatch.config import Config, Daemon, Hooks
from gpuwatch.daemon import Daemon as Wiring
from gpuwatch.service.preconditions import StartError
from tests.intake.conftest import Client
from tests.running_daemon import ROOT, SERVE, RunningDaemon, wait_until


def talker(daemon, *arguments):
    command = [sys.executable, "-m", "tests.intake.talker", str(daemon.socket), *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT)


@pytest.fixture
def client(tmp_path):
    client = Client(tmp_path / "gpuwatch.sock", slot_count=512, slot_bytes=2048)
    yield client
    client.close()
    client.ring.close()


def settings(folder, **changes):
    section = {"logdir": str(folder / "runs"), "socket": str(folder / "s"), "listen": "127.0.0.1:0", **changes}
    return Config(daemon=Daemon(**section))


def test_from_a_process_to_metrics_and_event_files(tmp_path):
    with RunningDaemon(tmp_path) as daemon:
        assert talker(daemon, 50).wait(60) == 0
        assert daemon.said["X_GPUWATCH_SOCKET"] == str(daemon.socket)
        wait_until(lambda: daemon.metrics()["gpuwatch_up"] == 1)
        metrics = daemon.metrics()
        assert metrics['gpuwatch_train_steps_total{run="talker",rank="0"}'] == 50
        assert metrics['gpuwatch_train_loss{run="talker",rank="0"}'] == pytest.approx(1 / 50)
        components = {name: value for name, value in metrics.items() if name.startswith("gpuwatch_component_up")}
        assert set(components.values()) == {1}
        for part in ("intake", "state", "detectors", "tensorboard", "http", "host"):
            assert f'gpuwatch_component_up{{component="{part}"}}' in components
        assert daemon.end() == 0
        run = daemon.runs()["talker"]
        assert (run.status, run.step, run.counters.steps) == ("finished", 50, 50)
        assert run.facts["batch_size"] == 32


def test_sigterm_reads_the_rings_dry_and_flushes(tmp_path, client):
    """What was published before the signal is in the journal and in run.json after it; and the run is not lost but goes on."""
    with RunningDaemon(tmp_path, daemon__poll_seconds=1.0) as daemon:
        client.connect()
        wait_until(daemon.runs)
        for step in range(1, 401):
            client.step(step)
        began = time.monotonic()
        assert daemon.end() == 0
        assert time.monotonic() - began < 5
        run = daemon.runs()["digits"]
        assert (run.status, run.step) == ("live", 400)
        assert not daemon.socket.exists()
        assert b"ended\n" in daemon.log.read_bytes()


def test_a_second_signal_ends_it_at_once(tmp_path):
    slow = SERVE.replace(
        "flags = ", "import gpuwatch.intake.intake as i, time\ni.Intake.close = lambda self: time.sleep(60)\nflags = "
    )
    with RunningDaemon(tmp_path, code=slow) as daemon:
        daemon.signal(signal.SIGTERM)
        time.sleep(0.3)
        assert daemon.process.poll() is None, "the flush was to be slow"
        began = time.monotonic()
        daemon.signal(signal.SIGTERM)
        assert daemon.process.wait(10) == 1
        assert time.monotonic() - began < 2


def test_sighup_takes_over_what_is_asked_of_the_hooks(tmp_path, client):
    file = tmp_path / "gpuwatch.toml"
    file.write_text("[hooks]\nevery = 1\n")
    code = SERVE.replace("config.load(environ={}", f"config.load(config.Path({str(file)!r}), environ={{}}")
    with RunningDaemon(tmp_path, code=code) as daemon:
        client.connect()
        heard = []
        wait_until(lambda: heard.extend(client.heard()) or heard)
        file.write_text("[hooks]\nevery = 25\n")
        daemon.signal(signal.SIGHUP)
        wait_until(lambda: heard.extend(client.heard()) or len(heard) > 1)
        assert heard[1] == {"t": "set", "every": 25, "histograms": True, "overhead_budget": 0.01, "kernel": "auto"}
        file.write_text("[hooks]\nevery = 'never'\n")
        daemon.signal(signal.SIGHUP)
        wait_until(lambda: "hooks.every" in daemon.log.read_text())
        assert daemon.process.poll() is None
        assert client.heard() == []
        assert daemon.end() == 0


def test_the_watchdog_is_told_often_enough(tmp_path):
    address = str(tmp_path / "systemd")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd, (tmp_path / "log").open("wb") as log:
        systemd.bind(address)
        systemd.settimeout(20)
        flags = {"daemon.logdir": str(tmp_path / "runs"), "daemon.socket": str(tmp_path / "s"), "daemon.listen": "127.0.0.1:0"}
        environ = {**os.environ, "NOTIFY_SOCKET": address, "WATCHDOG_USEC": "400000"}
        environ.pop("WATCHDOG_PID", None)
        command = [sys.executable, "-c", SERVE, json.dumps(flags)]
        process = subprocess.Popen(command, env=environ, cwd=ROOT, stderr=log)
        try:
            said = systemd.recv(4096).decode()
            assert "READY=1" in said
            times = []
            while len(times) < 8:
                if "WATCHDOG=1" in systemd.recv(4096).decode():
                    times.append(time.monotonic())
            assert sorted(later - earlier for earlier, later in itertools.pairwise(times))[3] < 0.4
            process.terminate()
            while "STOPPING=1" not in systemd.recv(4096).decode():
                pass
            assert process.wait(20) == 0
        finally:
            process.kill()
            process.wait(10)


def test_a_socket_that_is_taken(tmp_path):
    with RunningDaemon(tmp_path) as daemon:
        with pytest.raises(StartError, match="another gpuwatch daemon already listens at"):
            Wiring(settings(tmp_path, socket=str(daemon.socket)))
        wait_until(lambda: daemon.metrics()["gpuwatch_up"] == 1)


def test_a_port_that_is_taken(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(StartError, match=rf"cannot listen on 127\.0\.0\.1:{port}: the port is in use"):
            Wiring(settings(tmp_path, listen=f"127.0.0.1:{port}"))
    assert not (tmp_path / "s").exists()


def test_a_logdir_that_cannot_be(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StartError, match=r"cannot record to .*/file/runs: Not a directory; choose another place with --logdir"):
        Wiring(settings(tmp_path, logdir=str(tmp_path / "file" / "runs")))


def test_a_logdir_without_rights(tmp_path):
    code = f"""
import os, sys
from gpuwatch.service.preconditions import StartError, prepare_logdir
if os.geteuid() == 0:  # whom rights do not hold
    os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)
try:
    prepare_logdir({str(tmp_path)!r})
except StartError as error:
    print(error)
"""
    tmp_path.chmod(0o500)
    said = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    tmp_path.chmod(0o700)
    assert "cannot record to" in said.stdout, said.stderr


FAULTS = {
    "detectors": "import gpuwatch.judging.judge as m; m.Judge.turn = fault",
    "tensorboard": "import gpuwatch.exporters.tensorboard as m; m.TensorBoardExporter.turn = fault",
    "host": "import gpuwatch.samplers.host as m; m.HostSampler.sample = fault",
    "nvml": "import gpuwatch.samplers.supervisor as m; m.Supervisor.turn = fault",
    "state": "import gpuwatch.state.store as m; m.State.tick = fault",
}
RAISE = "def fault(*a, **k):\n    raise ValueError('planted')\n"
HANG = "def fault(*a, **k):\n    import time\n    time.sleep(600)\n"


@pytest.mark.parametrize(
    ("part", "fault"),
    [(part, RAISE) for part in FAULTS] + [("detectors", HANG), ("tensorboard", HANG)],
    ids=lambda value: {RAISE: "raises", HANG: "hangs"}.get(value, value),
)
def test_one_part_that_fails_is_shown_down_and_the_others_go_on(tmp_path, part, fault):
    # A hung thread is told by its missing heartbeat: 15 s and more, which a test need not wait for.
    impatient = "import gpuwatch.selfstats as s; e = s.SelfStats.expect\n"
    impatient += "s.SelfStats.expect = lambda self, name, stale=0.0, **k: e(self, name, 1.0 if stale or k else 0.0)\n"
    code = SERVE.replace("flags = ", f"{impatient}{fault}{FAULTS[part]}\nflags = ")
    with RunningDaemon(tmp_path, code=code, sampling__gpus=True) as daemon:
        assert talker(daemon, 30).wait(60) == 0

        def parts():
            found = {name: value for name, value in daemon.metrics().items() if name.startswith("gpuwatch_component_up")}
            return {name.split('"')[1]: value for name, value in found.items()}

        wait_until(lambda: parts()[part] == 0 and all(up for name, up in parts().items() if name != part))
        metrics = daemon.metrics()
        assert metrics['gpuwatch_train_steps_total{run="talker",rank="0"}'] == 30
        assert metrics["gpuwatch_up"] == 0
        if fault == RAISE:
            assert "planted" in daemon.log.read_text()
            assert daemon.log.read_text().count("planted") < 10
        began = time.monotonic()
        daemon.end()
        assert time.monotonic() - began < 10
        assert daemon.runs()["talker"].step == 30


def test_nothing_is_asked_of_a_daemon_that_has_no_features(tmp_path, client):
    flags = {"prometheus__enabled": False, "tensorboard__enabled": False, "sampling__host": False}
    with RunningDaemon(tmp_path, **flags) as daemon:
        assert daemon.metrics_url == ""
        client.connect()
        client.step(1)
        wait_until(lambda: daemon.runs() and daemon.runs()["digits"].step == 1)
        assert daemon.end() == 0


def test_the_settings_of_the_hooks_are_those_of_the_file(tmp_path, client):
    with RunningDaemon(tmp_path, hooks__every=4, hooks__histograms=False, hooks__kernel="foreach") as daemon:
        client.connect()
        heard = []
        wait_until(lambda: heard.extend(client.heard()) or heard)
        assert heard[0]["settings"] == {
            "every": 4,
            "histograms": False,
            "overhead_budget": Hooks().overhead_budget,
            "kernel": "foreach",
        }
        daemon.end()


SECOND_WAIT = """
import json, sys
from gpuwatch import config
from gpuwatch.service import logs
from gpuwatch.daemon import Daemon
settings = config.load(environ={}, flags=json.loads(sys.argv[1]))
logs.set_up("text", "info")
class Recorded(Daemon):
    waits = 0
    def _dispatch(self, timeout_seconds):
        if self.waits == 1:
            found = {"seconds": timeout_seconds, "samplers": len(self.supervisor.child_pids()), "state": self.state.gpus.state}
            with open(settings.daemon.logdir + "/second-wait.json", "w") as file:
                json.dump(found, file)
        self.waits += 1
        return super()._dispatch(timeout_seconds)
raise SystemExit(Recorded(settings).run())
"""


def test_the_sampler_is_at_work_after_one_short_wait_and_heard_soon(tmp_path):
    """A start had half a second before the sampler was started, and half a second before it was heard."""
    with RunningDaemon(tmp_path, code=SECOND_WAIT, sampling__gpus=True) as daemon:
        file = daemon.logdir / "second-wait.json"
        found = wait_until(lambda: file.exists() and file.read_text() and json.loads(file.read_text()))
    assert found == {"seconds": 0.02, "samplers": 1, "state": "starting"}
