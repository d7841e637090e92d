"""Why the daemon renders /metrics and speaks HTTP itself: what prometheus_client would cost in its place.

Memory: RSS of a process that has imported what the daemon has anyway, and then each of the two (PSS would be less by whatever
other Pythons happen to share with it at the moment). Time: the same families of a
node with 8 GPUs, 40 processes and 8 ranks, rendered by each.
"""

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from harness import Bench
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics import exposition as openmetrics_exposition

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from gpuwatch.config import Config  # noqa: E402
from gpuwatch.detectors.registry import BY_NAME  # noqa: E402
from gpuwatch.exporters.exposition import Renderer  # noqa: E402
from gpuwatch.exporters.prometheus import Prometheus  # noqa: E402
from gpuwatch.selfstats import SelfStats  # noqa: E402
from gpuwatch.state.store import State  # noqa: E402
from tests.exporters.job import Job  # noqa: E402  # the tests' own synthetic job
from tests.exporters.node import fill  # noqa: E402
from tests.exporters.test_exposition import Library  # noqa: E402

MEASURE = """
import gpuwatch.intake.intake, gpuwatch.exporters.tensorboard, gpuwatch.config
def rss_bytes():
    with open("/proc/self/smaps_rollup") as file:
        return sum(int(line.split()[1]) for line in file if line.startswith("Rss:")) * 1024
before = rss_bytes()
{imports}
print(rss_bytes() - before)
"""
OURS = "import gpuwatch.exporters.prometheus, gpuwatch.exporters.pages, gpuwatch.exporters.http"
LIBRARY = "import prometheus_client, http.server"


def imported_bytes(imports, rounds):
    code = MEASURE.format(imports=imports)
    results = (subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=True) for _ in range(rounds))
    return statistics.median(int(result.stdout) for result in results)


def milliseconds(render, rounds):
    took = []
    for _ in range(rounds):
        began = time.thread_time()
        render()
        took.append(1e3 * (time.thread_time() - began))
    return statistics.median(took)


bench = Bench("exposition", "Rendering /metrics: ours beside prometheus_client", packages=("prometheus-client",))
rounds = 5 if bench.quick else 100
with tempfile.TemporaryDirectory() as logdir:
    state = State(logdir)
    pids = [4000 + rank for rank in range(8)]
    for rank, pid in enumerate(pids):
        job = Job(state, "llama-pretraining-7b", rank=rank, world_size=8, pid=pid)
        job.step(1)
    fill(state, gpus=8, processes=5, ranks=pids, now_ns=time.monotonic_ns())
    exporter = Prometheus(Config(), state, SelfStats(), "0.1.0", list(BY_NAME))
    families = list(exporter.samples().families())
    state.close()
registry = CollectorRegistry(auto_describe=False)
registry.register(Library(families))
renderer = Renderer()
document = renderer.render(families, openmetrics=False)
series = sum(not line.startswith(b"#") for line in document.splitlines())

ours, library = (imported_bytes(imports, 1 if bench.quick else 7) / 2**20 for imports in (OURS, LIBRARY))
text = milliseconds(lambda: renderer.render(families, openmetrics=False), rounds)
metrics = milliseconds(lambda: renderer.render(families, openmetrics=True), rounds)
rows = [
    ("ours, with our HTTP server", ours, text, metrics, len(document)),
    (
        "prometheus_client, with http.server",
        library,
        milliseconds(lambda: generate_latest(registry), rounds),
        milliseconds(lambda: openmetrics_exposition.generate_latest(registry), rounds),
        len(generate_latest(registry)),
    ),
]
bench.table(f"{series} series", ("by", "RSS MiB", "text ms", "OpenMetrics ms", "bytes"), rows)
bench.number("gathering the samples under the state's lock", milliseconds(exporter.samples, rounds), "ms", at_most=5)
bench.number("RSS that the exporter adds to the daemon", ours, "MiB", at_most=2)
bench.number("rendering the text format", text, "ms", at_most=5)
bench.number("series", series, "", at_most=1500)
bench.number("bytes", len(document), "", at_most=150_000)
raise SystemExit(bench.finish())
