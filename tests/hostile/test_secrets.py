"""Canaries in a job's arguments, environment, paths, names and texts: none of them is anywhere in what the daemon writes."""

import os
import subprocess
import sys
import urllib.request

from tests.running_daemon import ROOT, RunningDaemon, wait_until

TOKEN = "hf_CANARYabcdefghijklmnop"
PLAIN = ["CANARY-ARGUMENT", "CANARY-ENVIRONMENT", "CANARY-FOLDER"]

LEAKY = """
import os, sys, time
sys.path.insert(0, sys.argv[1])
from gpuwatch_hooks import wire
from tests.intake.conftest import Client
token = sys.argv[2]
client = Client(sys.argv[3], 64, 2048).connect(run=f"run-{token}", program=sys.argv[4], token=token, device=f"cuda {token}")
client.numbered("names", table="tensor", version=1, first=0, names=[f"layer.{token}.weight"], numels=[4])
client.numbered("scalars", rows=[[f"loss/{token}", 1, 0.5, time.monotonic_ns()]])
client.numbered("meta", facts={"api_key": "CANARY-FACT", f"note {token}": "x", "url": f"https://me:{token}@host/", "n": token})
client.ring.write(wire.KIND_TENSORS, wire.TENSORS_HEAD.pack(1, 0, 0, 1, 0, 1, 0xFF), bytes(32))
client.step(1)
client.ring.write(wire.KIND_EVENT, wire.EVENT_HEAD.pack(1, 3, 0.0), f"failed with token={token}".encode())
text = os.memfd_create("text")
client.n += 1
os.write(text, f"# {token}\\npassword: CANARY-PASSWORD".encode())
client.send({"t": "media", "n": client.n, "kind": "text", "tag": f"notes/{token}", "step": 1, "shape": [],
             "bytes": os.fstat(text).st_size, "monotonic_ns": time.monotonic_ns()}, text)
client.ring.write(wire.KIND_END, wire.END_HEAD.pack(1, 0))
heard = []
while client.n not in [message.get("n") for message in heard if message]:
    heard += client.heard()
    time.sleep(0.01)
client.send({"t": "bye"})
"""


def test_no_secret_leaves_the_job(tmp_path):
    folder = tmp_path / "CANARY-FOLDER"
    folder.mkdir()
    script = folder / "train.py"
    script.write_text(LEAKY)
    with RunningDaemon(tmp_path, daemon__log_level="debug", prometheus__layer_top_k=5) as daemon:
        command = [
            sys.executable,
            str(script),
            str(ROOT),
            TOKEN,
            str(daemon.socket),
            str(script),
            "--password",
            "CANARY-ARGUMENT",
        ]
        subprocess.run(command, env={**os.environ, "SECRET": "CANARY-ENVIRONMENT"}, check=True, timeout=60)
        run = wait_until(lambda: daemon.runs() and next(iter(daemon.runs().values())))
        wait_until(lambda: daemon.runs()[run.directory].status == "finished")
        pages = b""
        for page in ("/metrics", "/", "/api/runs"):
            with urllib.request.urlopen(daemon.metrics_url.replace("/metrics", page), timeout=20) as response:
                pages += response.read()
        assert daemon.end() == 0
        written = {path: path.read_bytes() for path in daemon.logdir.rglob("*") if path.is_file()}
        names = "\n".join(map(str, daemon.logdir.rglob("*")))
    log = daemon.log.read_text()
    assert any("tfevents" in path.name for path in written)
    assert any(path.suffix == ".journal" for path in written)
    everything = {**written, "pages": pages, "log": log.encode(), "names": names.removeprefix(str(tmp_path)).encode()}
    for where, data in everything.items():
        assert TOKEN.encode() not in data, where
        assert b"CANARY" not in data.replace(str(folder).encode(), b""), where
    assert b"redacted" in pages, "the names did come through, without their secrets"
