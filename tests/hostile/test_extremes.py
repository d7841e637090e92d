"""Records that are well-formed and absurd: every number at its limit. The run may look absurd; the daemon and others do not."""

import itertools
import math
import random
import struct
import time

from gpuwatch_hooks import ring as ring_module
from gpuwatch_hooks import wire

from tests.intake.conftest import Client
from tests.running_daemon import SERVE, RunningDaemon, wait_until

FLOATS = [0.0, -0.0, math.nan, math.inf, -math.inf, 1.7e308, -1.7e308, 5e-324, -1.0, 1e18, 2.0**63, 2.0**64]
STEPS = [0, 1, 2, 3, (1 << 48) - 1, 1 << 48]
TIMES = [0, 1, (1 << 63) - 1, 1 << 63, (1 << 64) - 1]
# Each connection comes from a process of its own, though they all come from this one.
MANY_PROCESSES = """
import itertools
from gpuwatch.intake import peers
from gpuwatch.state.identity import Identity
number = itertools.count(1)
peers.identify = lambda connection: Identity(1000, 0, next(number))
"""


def absurd_records(chance):
    step, optimizer = chance.choice(STEPS), chance.choice([0, 1, 65535])
    count = chance.choice([0, 1, 7])
    fields = struct.pack(f"<{len(wire.STEP_FIELDS)}d", *chance.choices(FLOATS, k=len(wire.STEP_FIELDS)))
    yield (
        wire.KIND_TENSORS,
        wire.TENSORS_HEAD.pack(
            step,
            optimizer,
            chance.randrange(3),
            chance.choice([0, 1, 1 << 31]),
            chance.choice([0, 1993]),
            count,
            chance.choice([0, 0xFF, 0xFFFFFFFF]),
        ),
        struct.pack(f"<{8 * count}I", *chance.choices([0, 0x7F800000, 0xFF800000, 0x7FC00000, 0x7F7FFFFF, 1], k=8 * count)),
    )
    yield (
        wire.KIND_HISTOGRAMS,
        wire.HISTOGRAMS_HEAD.pack(step, optimizer, chance.randrange(3), 1, 0, count, chance.choice([-1199, -48, 0, 1199])),
        b"\xff" * (256 * count),
    )
    mask = chance.choice([0, (1 << len(wire.STEP_FIELDS)) - 1, (1 << 64) - 1, chance.getrandbits(64)])
    groups = chance.choices(FLOATS, k=2 * chance.choice([0, 1, 64]))
    yield wire.KIND_STEP, wire.pack_step(step, optimizer, chance.choice([0, 1, 65535]), mask, fields, groups), b""
    yield wire.KIND_EVENT, wire.EVENT_HEAD.pack(step, chance.randrange(len(wire.EVENT_CODES)), chance.choice(FLOATS)), b"text"


def test_absurd_numbers_hurt_nobody_else(tmp_path, monkeypatch):
    chance = random.Random(11)
    code = SERVE.replace("flags = ", MANY_PROCESSES + "flags = ")
    with RunningDaemon(tmp_path, code=code, prometheus__layer_top_k=20) as daemon:
        absurd = [Client(daemon.socket, 512, 8192) for _ in range(4)]
        for number, client in enumerate(absurd):
            clock = {"monotonic_ns": chance.choice([0, (1 << 63) - 1]), "wall_ns": chance.choice([0, (1 << 63) - 1])}
            client.connect(run=f"absurd{number}", clock=clock, ns_pid=1 << 31, rank=0, world_size=1)
            client.numbered(
                "names", table="tensor", version=1 << 24, first=0, names=[""] * 7, numels=[0, 1, (1 << 63) - 1, 1, 1, 1, 1]
            )
            client.numbered("names", table="group", version=0, first=1 << 24, names=["far away"])
            rows = [
                [f"tag{i}", step, value, at]
                for i, (step, value, at) in enumerate(itertools.product([0, 1 << 48], FLOATS, [0, (1 << 63) - 1]))
            ]
            client.send(_json({"t": "scalars", "n": 3, "rows": rows}))
            client.n = 3
            client.numbered("meta", facts={"": "", "x": 1e308, "big": (1 << 63) - 1, "inf": math.inf, "nan": math.nan})
        honest = Client(daemon.socket, 512, 2048).connect(run="honest")
        for turn in range(60):
            with monkeypatch.context() as patch:
                patch.setattr(ring_module.time, "monotonic_ns", lambda: chance.choice(TIMES))
                for client in absurd:
                    for kind, head, body in absurd_records(chance):
                        client.ring.write(kind, head, body)
            honest.step(turn + 1)
            time.sleep(0.02)
        wait_until(lambda: "honest" in daemon.runs() and daemon.runs()["honest"].step == 60)
        wait_until(lambda: all(f"absurd{number}" in daemon.runs() for number in range(4)))
        time.sleep(1.5)  # TensorBoard's turn, and the state's
        metrics = daemon.metrics()
        down = [name for name, value in metrics.items() if name.startswith("gpuwatch_component_up") and not value]
        assert not down, daemon.log.read_text()
        assert metrics['gpuwatch_train_steps_total{run="honest",rank="0"}'] == 60
        for client in absurd[:2]:
            client.ring.write(wire.KIND_END, wire.END_HEAD.pack(1 << 48, 1))
            client.send({"t": "bye"})
        for client in absurd:
            client.close()
        wait_until(lambda: max(run.status for run in daemon.runs().values()) == "lost")
        counters = [run.counters for name, run in daemon.runs().items() if name != "honest"]
        assert all(counted.records > 200 and counted.dropped.get("undecodable", 0) < 100 for counted in counters), counters
        assert daemon.end() == 0
        assert len(daemon.runs()) == 5, "a run.json that cannot be read"
        assert "Error" not in daemon.log.read_text(), daemon.log.read_text()
        for client in [*absurd, honest]:
            client.close()
            client.ring.close()


def _json(message):
    import json

    return json.dumps(message).encode()
