"""A real Prometheus on a free port that scrapes one address every second, or does what `config` says."""

from __future__ import annotations

import json
import math
import shutil
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from pathlib import Path

import pytest

CONFIG = """\
global: {{scrape_interval: 1s, scrape_timeout: 1s}}
scrape_configs: [{{job_name: gpuwatch, static_configs: [{{targets: ["{target}"]}}]}}]
"""


class PrometheusServer:
    def __init__(self, target, folder, config=None):
        if shutil.which("prometheus") is None:
            pytest.skip("needs prometheus (apt-get install prometheus)")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{probe.getsockname()[1]}"
        file = folder / "prometheus.yml"
        file.write_text(config or CONFIG.format(target=target))
        command = ["prometheus", f"--config.file={file}", f"--storage.tsdb.path={folder / 'data'}"]
        command += [f"--web.listen-address={self.address}", "--log.level=warn"]
        self.log = (folder / "prometheus.log").open("wb")
        self.process = subprocess.Popen(command, stdout=self.log, stderr=self.log)

    def get(self, path, **query):
        with urllib.request.urlopen(
            f"http://{self.address}/api/v1/{path}?{urllib.parse.urlencode(query)}", timeout=10
        ) as answer:
            return json.loads(answer.read())["data"]

    def query(self, expression):
        """{labels without job, instance and name, as a frozenset of pairs: value} of an instant vector; NaN as a word."""
        found = {}
        for series in self.get("query", query=expression)["result"]:
            labels = {k: v for k, v in series["metric"].items() if k not in ("job", "instance", "__name__")}
            value = float(series["value"][1])
            found[frozenset(labels.items())] = "NaN" if math.isnan(value) else value
        return found

    def until(self, condition, seconds=30):
        """What `condition` returns, once that is true; Prometheus may still be starting."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                found = condition(self)
            except OSError:
                found = None
            if found:
                return found
            assert time.monotonic() < deadline, (self.process.poll(), Path(self.log.name).read_text())
            time.sleep(0.1)

    def close(self):
        self.process.terminate()
        self.process.wait(20)
        self.log.close()
