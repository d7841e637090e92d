"""What the web page costs the daemon: processor time of the thread that serves it, by who looks.

The real server over a state with 8 GPUs, 40 processes and 8 ranks of 150 layers, each of which takes ten steps a second. Those
who look are another process, so that nothing of theirs is counted. One page asks for the events; a run's page asks for the
run's new points each second and for its layers every four.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parent)]

from harness import Bench  # noqa: E402  # a bench is a script, and scripts find the repository themselves

from gpuwatch.config import Config  # noqa: E402
from gpuwatch.exporters.http import HttpServer, Response  # noqa: E402
from gpuwatch.exporters.pages import Pages  # noqa: E402
from gpuwatch.selfstats import SelfStats  # noqa: E402
from gpuwatch.state.store import State  # noqa: E402
from tests.exporters.job import Job  # noqa: E402
from tests.exporters.node import fill  # noqa: E402

RANKS, LAYERS, GPUS = 8, 150, 8
STEPS_BEFORE = 100

#: ADDRESS PORT WHAT: follows the events, or asks as a run's page does, until it is ended.
VIEWER = """
import socket, sys, time, urllib.request
host, port, what = sys.argv[1], int(sys.argv[2]), sys.argv[3]
if what == "events":
    sock = socket.create_connection((host, port))
    sock.sendall(b"GET /api/events HTTP/1.1\\r\\nHost: localhost\\r\\n\\r\\n")
    while sock.recv(1 << 16):
        pass
turn, after = 0, 0
while True:
    ask = lambda path: urllib.request.urlopen(f"http://{host}:{port}{path}").read()
    ask(f"/api/run?run=bench/rank0&after={max(0, after)}")
    if turn % 4 == 0:
        ask("/api/layers?run=bench/rank0")
    turn, after = turn + 1, 100 + 10 * turn
    time.sleep(1)
"""


class Training:
    """Steps of every rank, ten a second, from a thread."""

    def __init__(self, state):
        names = tuple(f"layers.{index}.weight" for index in range(LAYERS))
        self.jobs = [Job(state, "bench", rank=rank, world_size=RANKS, pid=20_000 + rank, layers=names) for rank in range(RANKS)]
        for step in range(1, STEPS_BEFORE + 1):
            for job in self.jobs:
                job.step(step, tables=step == STEPS_BEFORE)
        self.stopping = threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self):
        step = STEPS_BEFORE
        while not self.stopping.wait(0.1):
            step += 1
            for job in self.jobs:
                job.step(step, tables=False)

    def stop(self):
        self.stopping.set()
        self.thread.join(20)


def viewers(server, what, count):
    command = [sys.executable, "-c", VIEWER, server.address[0], str(server.address[1]), what]
    return [subprocess.Popen(command, stderr=subprocess.DEVNULL) for _ in range(count)]


def measured(server, seconds, started):
    """Processor milliseconds a second of the serving thread while `started` look; they are ended."""
    clock = time.pthread_getcpuclockid(server._thread.ident)
    try:
        time.sleep(1.5)  # they connect, and read what stands before the first event
        cpu, began = time.clock_gettime(clock), time.monotonic()
        time.sleep(seconds)
        return (time.clock_gettime(clock) - cpu) / (time.monotonic() - began) * 1e3
    finally:
        for process in started:
            process.kill()
        for process in started:
            process.wait(20)
        time.sleep(0.3)


def main():
    bench = Bench("page", "What the web page costs the daemon", packages=("msgspec",))
    seconds, rounds = (2, 1) if bench.quick else (5, 2)
    with tempfile.TemporaryDirectory(prefix="gpuwatch-bench-") as folder:
        state, stats = State(str(Path(folder) / "runs")), SelfStats()
        training = Training(state)
        fill(
            state,
            gpus=GPUS,
            processes=5,
            ranks=tuple(job.run.identity.pid for job in training.jobs),
            now_ns=time.monotonic_ns(),
        )
        web = Pages(state, stats, "0.1.0")
        server = HttpServer(Config(), ("127.0.0.1", 0), web.routes(lambda _: Response(b"")), web.turn)
        server.start()
        scenes = {
            "nobody": list,
            "one page": lambda: viewers(server, "events", 1),
            "eight pages": lambda: viewers(server, "events", 8),
            "one page, and the page of a run": lambda: viewers(server, "events", 1) + viewers(server, "run", 1),
        }
        try:
            renderings = web.live.renderings
            found = {name: [] for name in scenes}
            for _ in range(rounds):
                for name, begin in scenes.items():
                    before = web.live.renderings
                    found[name].append((measured(server, seconds, begin()), web.live.renderings - before))
            event_bytes = len(web.live.event())
        finally:
            server.stop()
            training.stop()
            state.close()
    medians = {name: statistics.median(cpu for cpu, _ in rows) for name, rows in found.items()}
    rows = [(name, medians[name], statistics.median(made for _, made in found[name]) / (seconds + 1.5)) for name in scenes]
    bench.table(
        "The serving thread (8 GPUs, 40 processes, 8 ranks at 10 steps/s)", ("who looks", "CPU ms/s", "renderings/s"), rows
    )
    alone = medians["nobody"]
    bench.number("one page, over nobody", medians["one page"] - alone, "ms/s", at_most=1.0)
    bench.number("seven pages more", medians["eight pages"] - medians["one page"], "ms/s")
    bench.number("the page of a run", medians["one page, and the page of a run"] - medians["one page"], "ms/s")
    bench.number("renderings while nobody looks", sum(made for _, made in found["nobody"]) + renderings, "", at_most=0)
    bench.number("an event", event_bytes / 1e3, "kB")
    raise SystemExit(bench.finish())


if __name__ == "__main__":
    main()
