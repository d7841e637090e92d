"""The whole screen as Textual exports it, against what was once looked at: GPUWATCH_UPDATE_GOLDEN=1 writes it anew."""

import asyncio
import dataclasses
import os
from pathlib import Path

import msgspec
import pytest

from gpuwatch.state.gpus import HostProcess, HostSample
from gpuwatch.state.node_report import ProcessReport
from gpuwatch.top.app import TopApp
from gpuwatch.top.reading import Job
from tests.top.conftest import GIB
from tests.top.painted import painted
from tests.top.test_app import Still, screen_text, until

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture
def still(trained, monkeypatch):
    """The scene with everything that differs from one machine or second to the next set to something fixed; two ranks."""
    monkeypatch.setenv("TZ", "UTC")
    monkeypatch.setattr("time.localtime", __import__("time").gmtime)

    def process(pid, **facts):
        known = {"kind": "compute", "start_ticks": 1, "user": "alice", "command": "python3", "sm_utilization_ratio": 0.4}
        return ProcessReport(pid=pid, memory_peak_bytes=facts["memory_bytes"] + GIB, **{**known, **facts})

    def values(busy, used_gib, watts, **more):
        """What a GPU says; written down here, so that a sampler that learns to read more changes no snapshot."""
        return {
            "utilization_ratio": busy,
            "utilization_peak_ratio": dict.fromkeys(("10s", "60s", "300s"), 0.99),
            "memory_used_bytes": used_gib * GIB,
            "memory_size_bytes": 80 * GIB,
            "memory_used_peak_bytes": dict.fromkeys(("10s", "60s", "300s"), 62 * GIB),
            "power_watts": watts,
            "power_limit_watts": 700.0,
            "temperature_celsius": {"core": 44.0, "memory": 46.0},
            "temperature_threshold_celsius": {"slowdown": 90.0},
            "clock_hertz": {"sm": 1.2e9, "memory": 2.619e9},
            "clock_max_hertz": {"sm": 1.98e9, "memory": 2.619e9},
            **more,
        }

    first, second, lost = trained.node.gpus
    gpus = [
        msgspec.structs.replace(
            first,
            age_seconds=0.5,
            values=values(0.97, 40, 699.0, tensor_active_ratio=0.41, throttle_active={"power_cap": 1.0, "sync_boost": 0.0}),
            processes=[
                process(4001, memory_bytes=30 * GIB, sm_utilization_ratio=0.95),
                process(4100, memory_bytes=GIB, user="bob", command="jupyter"),
            ],
        ),
        msgspec.structs.replace(
            second,
            age_seconds=0.5,
            values=values(0.38, 37, 210.0),
            processes=[
                process(4002, memory_bytes=28 * GIB),
                process(4200, memory_bytes=8 * GIB, user="bob", command="vllm", container="0123456789ab"),
            ],
        ),
        msgspec.structs.replace(lost, age_seconds=7.0),
    ]
    resident = {pid: HostProcess(cpu_seconds=10.0, resident_bytes=3 * GIB, read_bytes=0) for pid in (4001, 4002)}
    host = HostSample(10**9, 0.5, 100 * GIB, 512 * GIB, resident)
    node = msgspec.structs.replace(trained.node, wall_seconds=1_700_000_000.0, gpus=gpus, host=host)
    (job,) = trained.jobs
    ranks = []
    for rank, pid in enumerate((4001, 4002)):
        identity = msgspec.structs.replace(job.summary.identity, pid=pid)
        summary = msgspec.structs.replace(job.summary, rank=rank, world_size=2, identity=identity)
        ranks.append(Job(summary, "live"))
    return dataclasses.replace(trained.reading(), node=node, jobs=ranks)


def shot(reading, size, keys=()):
    async def run():
        app = TopApp(Still(reading))
        async with app.run_test(size=size) as pilot:
            await until(pilot, lambda: "MEM▼" in screen_text(app))
            await pilot.press(*keys)
            await pilot.pause(0.3)
            return app.export_screenshot()

    return painted(asyncio.run(run()), *size)


def compared(name, text):
    golden = GOLDEN / f"{name}.txt"
    if os.environ.get("GPUWATCH_UPDATE_GOLDEN"):
        GOLDEN.mkdir(exist_ok=True)
        golden.write_text(text)
    assert text == golden.read_text(), f"{golden.name} differs:\n{text}"


@pytest.mark.parametrize("size", [(160, 50), (80, 24), (50, 12)], ids=lambda size: f"{size[0]}x{size[1]}")
def test_the_screen(still, size):
    compared(f"flat-{size[0]}x{size[1]}", shot(still, size))


@pytest.mark.parametrize("size", [(120, 40), (80, 24)], ids=lambda size: f"{size[0]}x{size[1]}")
def test_the_tree(still, size):
    compared(f"tree-{size[0]}x{size[1]}", shot(still, size, keys=["t"]))


def test_the_question_before_a_signal(still):
    compared("signal-80x24", shot(still, (80, 24), keys=["k"]))


def test_a_daemon_that_is_silent(still):
    silent = dataclasses.replace(still, note="the daemon does not answer: this is the last that it said", stale=True)
    compared("stale-100x24", shot(silent, (100, 24)))


def test_nothing_at_all(still):
    node = msgspec.structs.replace(still.node, gpus=[], state="absent", message="no NVIDIA driver here", host=None)
    compared("nothing-80x24", shot(dataclasses.replace(still, node=node, jobs=[]), (80, 24)))


def test_a_snapshot_sees_a_colour_that_changed(still):
    """What compares text alone would pass this: 699 of 700 W is yellow, 300 of 700 W is not."""
    gpu = still.node.gpus[0]
    cooler = msgspec.structs.replace(gpu, values={**gpu.values, "power_watts": 300.0})
    node = msgspec.structs.replace(still.node, gpus=[cooler, *still.node.gpus[1:]])
    hot, cool = (
        shot(reading, (80, 24)).replace("300/700", "699/700") for reading in (still, dataclasses.replace(still, node=node))
    )
    styles = [[line for line in text.splitlines() if not line.startswith("|")] for text in (hot, cool)]
    assert styles[0] != styles[1]
