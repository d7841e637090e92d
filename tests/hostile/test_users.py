"""Another user claims to be a rank of somebody's run: the kernel says who it is, and it gets a run of its own."""

import os
import subprocess
import sys

from tests.intake.conftest import Client, Desk
from tests.running_daemon import ROOT

INTRUDER = """
import os, sys, time
sys.path.insert(0, sys.argv[1])
from tests.intake.conftest import Client
os.setgroups([])
os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)
client = Client("gpuwatch.sock", 64, 512)
client.connect(run="digits", token="t", rank=0, world_size=2, uid=0, attempt_id="a")
client.step(7, loss=66.6)
client.numbered("scalars", rows=[["val/loss", 1, 66.6, 1]])
print("said", flush=True)
time.sleep(60)
"""


def test_a_claim_groups_within_one_user_only(tmp_path, monkeypatch):
    desk = Desk(tmp_path)
    owner = Client(desk.path).connect(run="digits", token="t", rank=1, world_size=2)
    owner.step(1)
    desk.pump()
    if os.geteuid() == 0:
        tmp_path.chmod(0o755)
        desk.path.chmod(0o666)
        command = [sys.executable, "-c", INTRUDER, str(ROOT)]
        intruder = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE)
        assert intruder.stdout.readline() == b"said\n"
        desk.pump(until=lambda: len(desk.state.runs) == 2)
        desk.pump()
        intruder.kill()
        intruder.wait(20)
        intruder.stdout.close()
    else:  # who may not become another user lets the kernel's answer be another's
        from gpuwatch.intake import peers
        from gpuwatch.state.identity import Identity

        monkeypatch.setattr(peers, "identify", lambda connection: Identity(65534, 0, 0))
        intruder = Client(desk.path).connect(run="digits", token="t", rank=0, world_size=2)
        intruder.step(7, loss=66.6)
        desk.pump()
    owners, intruders = sorted(desk.state.runs.values(), key=lambda run: run.identity.uid)
    assert (owners.identity.uid, intruders.identity.uid) == (os.geteuid(), 65534)
    assert owners.name == "digits"
    assert intruders.name == "digits-2", "another user's rank must not join the run"
    assert owners.last_step == 1
    assert "val/loss" not in owners.scalars
    desk.close()
    owner.close()
    owner.ring.close()


def test_another_user_cannot_take_over_a_ring_by_its_id(tmp_path, monkeypatch):
    from gpuwatch.intake import peers
    from gpuwatch.state.identity import Identity

    desk = Desk(tmp_path)
    owner = Client(desk.path).connect()
    owner.step(1)
    owner.numbered("meta", facts={"a": 1})
    desk.pump()
    monkeypatch.setattr(peers, "identify", lambda connection: Identity(65534, 1, 1))
    thief = Client(desk.path)
    hello = thief.hello()
    hello["ring"] = {"id": owner.ring.ring_id, "slots": owner.ring.slot_count, "slot_bytes": owner.ring.slot_bytes}
    thief.dial().send(hello, owner.ring.fd)
    desk.pump()
    (welcome,) = thief.heard()
    assert welcome["acked"] == 0
    assert welcome["run"] != "digits"
    assert len(desk.intake.sessions) == 2
    desk.close()
    for client in (owner, thief):
        client.close()
        client.ring.close()
