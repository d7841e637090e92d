"""A real Alertmanager with the shipped configuration, and the webhook that it tells."""

import json
import shutil
import socket
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import yaml


class Webhook:
    """Listens on the loopback address; `alerts` are all that were told, as Alertmanager writes them."""

    def __init__(self):
        self.alerts = []
        webhook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                webhook.alerts += json.loads(self.rfile.read(int(self.headers["Content-Length"])))["alerts"]
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def told(self, alertname):
        return [alert for alert in self.alerts if alert["labels"]["alertname"] == alertname]

    def close(self):
        self._server.shutdown()
        self._server.server_close()


class AlertmanagerServer:
    """Groups wait for a second only; everything else is as it is shipped (`shipped`: the file's path)."""

    def __init__(self, shipped, webhook_url, folder):
        if shutil.which("prometheus-alertmanager") is None:
            pytest.skip("needs prometheus-alertmanager (apt-get install prometheus-alertmanager)")
        config = yaml.safe_load(shipped.read_text())
        config["route"] |= {"group_wait": "1s", "group_interval": "1s"}
        config["receivers"][0]["webhook_configs"][0]["url"] = webhook_url
        (folder / "alertmanager.yml").write_text(yaml.safe_dump(config))
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{probe.getsockname()[1]}"
        command = ["prometheus-alertmanager", f"--config.file={folder / 'alertmanager.yml'}", "--cluster.listen-address="]
        command += [f"--web.listen-address={self.address}", f"--storage.path={folder / 'alertmanager'}", "--log.level=warn"]
        self.log = (folder / "alertmanager.log").open("wb")
        self.process = subprocess.Popen(command, stdout=self.log, stderr=self.log)

    def close(self):
        self.process.terminate()
        self.process.wait(20)
        self.log.close()
