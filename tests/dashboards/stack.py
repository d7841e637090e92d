"""Everything for real: a training under `gpuwatch run`, a daemon on two fake H100, Prometheus with the shipped rules and
configuration, Alertmanager, and a webhook. Scraped and evaluated every second.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path

import yaml

from tests.dashboards.alertmanager_server import AlertmanagerServer, Webhook
from tests.exporters.prometheus_server import PrometheusServer
from tests.fake_nvml.driver import FakeDriver, h100
from tests.running_daemon import ROOT, RunningDaemon, wait_until

SHIPPED = ROOT / "dashboards"
RUN = "digits"


class Stack:
    def __init__(self, folder):
        self.folder = folder
        self._closing = []
        try:
            self._start()
        except BaseException:
            self.close()
            raise

    def _start(self):
        self.fake = FakeDriver(self._sub("fake"), [h100(0), h100(1)])
        for gpu in self.fake.gpus:  # the recorded board was alone: it had no peer to talk to over NVLink
            for field in ("field:138", "field:139"):
                gpu.get(field, 1000, 3)
                gpu.lines.append(f"rate {field} 1000")
        self.fake.gpus[1].faults.append("error nvmlDeviceGetPerformanceState 10")  # one call that times out
        self.fake.write()
        flags = {"sampling__gpus": True, "prometheus__layer_top_k": 4, "sampling__slow_seconds": 1.0}
        self.daemon = RunningDaemon(self._sub("daemon"), environ=self.fake.environment, **flags)
        self._closing.append(self.daemon.kill)
        self.breaks = self.folder / "break-now"
        program = Path(__file__).with_name("breaks.py")
        job = [sys.executable, str(program), str(self.breaks), str(self._sub("scalars"))]
        self.training = subprocess.Popen(
            [sys.executable, "-m", "gpuwatch", "run", "-q", "--name", RUN, "--", *job],
            cwd=ROOT,
            env={**os.environ, "GPUWATCH_SOCKET": str(self.daemon.socket)},
            start_new_session=True,
        )
        self._closing.append(self._end_training)
        self.webhook = Webhook()
        self._closing.append(self.webhook.close)
        place = self._sub("alertmanager")
        self.alertmanager = AlertmanagerServer(SHIPPED / "provisioning/alertmanager/alertmanager.yml", self.webhook.url, place)
        self._closing.append(self.alertmanager.close)
        self.prometheus = PrometheusServer(None, self._sub("prometheus"), self._prometheus_config())
        self._closing.append(self.prometheus.close)
        self._put_training_on_gpu(wait_until(lambda: self.daemon.runs().get(RUN), 60).identity.pid)

    def _prometheus_config(self):
        """The shipped one, with our addresses and without its patience."""
        config = yaml.safe_load((SHIPPED / "provisioning/prometheus/prometheus.yml").read_text())
        config["global"] = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
        address = self.daemon.metrics_url.removeprefix("http://").removesuffix("/metrics")
        config["scrape_configs"][0]["static_configs"][0]["targets"] = [address]
        config["rule_files"] = [str(SHIPPED / path) for path in config["rule_files"]]
        config["alerting"]["alertmanagers"][0]["static_configs"][0]["targets"] = [self.alertmanager.address]
        return yaml.safe_dump(config)

    def _put_training_on_gpu(self, pid):
        gpu = self.fake.gpus[0]
        gpu.process(pid, 20 << 30, sm_percent=80)
        gpu.get("nvmlDeviceGetUtilizationRates", 85, 40)
        self.fake.write()

    def _sub(self, name):
        folder = self.folder / name
        folder.mkdir()
        return folder

    def _end_training(self):
        if self.training.poll() is None:
            os.killpg(self.training.pid, signal.SIGKILL)
        self.training.wait(20)

    def close(self):
        while self._closing:
            self._closing.pop()()
