"""Jobs for bench_attach: `attach_jobs.py JOB` trains a small network for ever, and beside it does what makes attaching hard.

A line on standard input is answered by one of JSON: step, longest gap between the ends of two steps since the last answer, in
seconds, and how many results were not bit for bit what they must be.
"""

import gc
import importlib
import os
import select
import signal
import sys
import threading
import time

import torch
from torch import nn

torch.manual_seed(0)
torch.set_num_threads(1)


def nothing():
    return True


def products(left=torch.randn(384, 384)):  # noqa: B008  # one operand for the whole run
    if not hasattr(products, "expected"):
        products.expected = left @ left
    return torch.equal(left @ left, products.expected)


def allocations():
    kept = [bytearray(size) for size in range(1, 20000, 37)]
    cycle = [{} for _ in range(300)]
    for item in cycle:
        item["all"] = cycle
    gc.collect(0)
    return len(kept) > 0


def imports():
    for name in ("json.decoder", "json.encoder", "json.scanner", "json"):
        sys.modules.pop(name, None)
    return importlib.import_module("json").loads("[1]") == [1]


def threads():
    workers = [threading.Thread(target=allocations) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return True


def signals():
    os.kill(os.getpid(), signal.SIGUSR1)
    return True


JOBS = {
    "small": nothing,
    "workers": nothing,
    "amp": nothing,
    "matmul": products,
    "allocations": allocations,
    "imports": imports,
    "threads": threads,
    "signals": signals,
}


def main(job):
    beside = JOBS[job]
    signal.signal(signal.SIGUSR1, lambda *_: None)
    if job == "signals":
        signal.signal(signal.SIGPROF, lambda *_: None)
        signal.setitimer(signal.ITIMER_PROF, 0.002, 0.002)
    model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 1))
    optimizer = torch.optim.Adam(model.parameters())
    scaler = torch.amp.GradScaler("cpu", enabled=job == "amp")
    data = torch.utils.data.TensorDataset(torch.randn(4096, 32))
    loader = torch.utils.data.DataLoader(data, batch_size=16, num_workers=2 if job == "workers" else 0)
    steps, longest, bad, last = 0, 0.0, 0, time.perf_counter()
    print("ready", flush=True)
    while True:
        for (batch,) in loader:
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=job == "amp"):
                loss = model(batch).float().pow(2).mean()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            bad += not beside()
            steps += 1
            now = time.perf_counter()
            longest, last = max(longest, now - last), now
            if select.select([sys.stdin], [], [], 0)[0]:
                if not sys.stdin.readline():
                    return
                # Not json.dumps: the job "imports" is in the middle of throwing that module out.
                print('{"step": %d, "longest_gap_seconds": %r, "bad": %d}' % (steps, longest, bad), flush=True)  # noqa: UP031
                longest, last = 0.0, time.perf_counter()


if __name__ == "__main__":
    main(sys.argv[1])
