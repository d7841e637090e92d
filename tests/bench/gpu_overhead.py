"""The overhead bench on a GPU: blocks of plain and observed steps in turn, for each job and each observer."""

import statistics
import sys

import torch

from tests.bench import gpu_jobs
from tests.gpu import pretended


def on_a_gpu(bench, make_hooks, quartiles):
    """All jobs; one that fails is a number that says so. `make_hooks(budget)`, `quartiles(ratios)`: the bench's own."""
    for name, make, limit, steps in gpu_jobs.jobs():
        block = pretended.smaller(max(4, steps // 5) if bench.quick else steps, 2)
        try:
            _one_job(bench, name, make(), limit, block, make_hooks, quartiles)
        except Exception as error:
            bench.failed(f"overhead, {name}", error)
        torch.cuda.empty_cache()


def _one_job(bench, name, job, limit, block, make_hooks, quartiles):
    sets = {"everything at every step": make_hooks(1.0), "within the default budget": make_hooks(0.01)}
    job.seconds(pretended.smaller(10, 1))
    ours, host = {"plain, twice": lambda job, count: job.seconds(count)}, {}
    for kind, hooks in sets.items():
        found = host[kind] = hooks.host_microseconds()
        hooks.run(job, pretended.smaller(64, 3))  # the kernel is there after this, and the governor's plan
        found.clear()
        ours["gpuwatch, " + kind] = hooks.run
    rows = []
    for observer, run in {**ours, **gpu_jobs.peers()}.items():
        rounds = (12 if observer in ours else 5) // (2 if bench.quick else 1)
        try:
            ratios = [run(job, block) / job.seconds(block) for _ in range(rounds)]
        except Exception as error:
            if observer in ours:
                raise
            print(f"left out: {observer} ({type(error).__name__}: {error})", file=sys.stderr)
            continue
        rows.append((observer, quartiles(ratios), rounds))
        if observer.startswith("gpuwatch"):
            what = f"step with hooks over plain step, {name}, {observer.partition(', ')[2]}"
            bench.number(what, statistics.median(ratios), "ratio", at_most=limit)
    facts = {}
    for kind, hooks in sets.items():
        most = 150 if "budget" in kind else None  # histograms and update ratios at every step are three passes more
        bench.number(f"host time of the hooks a step, {name}, {kind}", statistics.median(host[kind]), "us", at_most=most)
        if hooks.session.faults:
            raise RuntimeError(f"a probe has failed: {hooks.session.faults[0]}")
        facts = {key: value for told in hooks.session.told for key, value in told.items() if key.startswith("kernel")}
        hooks.session.close()
    plain = f"plain step {1000 * job.seconds(block) / block:.1f} ms, blocks of {block} steps"
    title = f"{torch.cuda.get_device_name()}: {name}, {len(list(job.model.parameters()))} tensors, {plain}; {facts}"
    bench.table(title, ("observer", "wall time, median and quartiles", "rounds"), rows)
