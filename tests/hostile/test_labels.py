"""A label bomb: tens of thousands of names in many runs, a bounded number of series, and a scrape that stays quick."""

import time
import urllib.request

from tests.intake.conftest import Client
from tests.running_daemon import SERVE, RunningDaemon, wait_until

RUNS, TAGS, NAMES = 12, 3000, 2500


# As many processes as there are connections: a process has one session, and these all come from one.
MANY_PROCESSES = """
import itertools
from gpuwatch.intake import peers
from gpuwatch.state.identity import Identity
number = itertools.count(1)
peers.identify = lambda connection: Identity(1000, 0, next(number))
"""


def test_tens_of_thousands_of_names_stay_within_the_quotas(tmp_path):
    code = SERVE.replace("flags = ", MANY_PROCESSES + "flags = ")
    with RunningDaemon(tmp_path, code=code, prometheus__layer_top_k=50) as daemon:
        clients = []
        for number in range(RUNS):
            client = Client(daemon.socket, 64, 4096)
            client.connect(run=f"bomb{number}")
            clients.append(client)
            for first in range(0, NAMES, 500):
                names = [f"layer{number}.{index}.weight" for index in range(first, first + 500)]
                send(client, "names", table="tensor", version=1, first=first, names=names, numels=[1] * 500)
            for first in range(0, TAGS, 500):
                rows = [[f"tag{number}/{index}", 1, 1.0, 1] for index in range(first, first + 500)]
                send(client, "scalars", rows=rows)
            client.step(1)
        wait_until(lambda: len(daemon.runs()) == RUNS)
        wait_until(lambda: daemon.runs()["bomb11"].step == 1)
        runs = list(daemon.runs().values())
        assert {run.status for run in runs} == {"live"}
        for run in runs:
            assert run.tensors <= 2000
            assert len(run.scalars) <= 501
            assert run.counters.dropped["over_quota"] >= NAMES - 2000 + TAGS - 500
        # Twelve runs of 2,000 tensors and 500 tags would be 30,000.
        assert sum(run.tensors + len(run.scalars) - 1 for run in runs) == 20_000
        durations = []
        for _ in range(3):
            time.sleep(0.6)  # a scrape within half a second of another gets the same document
            began = time.monotonic()
            with urllib.request.urlopen(daemon.metrics_url, timeout=20) as response:
                document = response.read()
            durations.append(time.monotonic() - began)
        assert min(durations) < 0.5
        series = [line for line in document.splitlines() if not line.startswith(b"#")]
        assert len(series) < 20_000
        for client in clients:
            client.close()
            client.ring.close()
        assert daemon.end() == 0


def send(client, kind, **fields):
    """Blocks when the daemon is behind, as the hooks' control thread may."""
    client.socket.setblocking(True)
    client.numbered(kind, **fields)
    client.socket.setblocking(False)
