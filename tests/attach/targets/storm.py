"""Allocation, collection, import, thread and signal storms: where a clumsy injector deadlocks or crashes its target."""

import gc
import importlib
import json
import os
import signal
import sys
import threading
import time


def allocate():
    return [bytearray(size) for size in range(1, 20000, 37)]


def collect():
    cycle = [{} for _ in range(1000)]
    for item in cycle:
        item["all"] = cycle
    del cycle, item
    gc.collect()


def reimport():
    sys.modules.pop("json.decoder", None)
    importlib.import_module("json.decoder")
    json.loads('{"a": [1, 2, 3]}')


def threads():
    workers = [threading.Thread(target=allocate) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()


def signals():
    os.kill(os.getpid(), signal.SIGUSR1)


def faults():
    os.kill(os.getpid(), signal.SIGSEGV)


def alarms():
    seconds = 0.0005 * float(os.environ.get("TEST_PATIENCE", "1"))
    signal.setitimer(signal.ITIMER_REAL, seconds, seconds)  # five times as often as a sampling profiler's
    allocate()


def flood():
    signal.setitimer(signal.ITIMER_REAL, 0.00001, 0.00001)
    allocate()


def fork():
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)


for number in (signal.SIGUSR1, signal.SIGSEGV, signal.SIGALRM):
    signal.signal(number, lambda *_: None)
storm = globals()[sys.argv[1]]
print("ready", flush=True)
end = time.monotonic() + 600  # a machine may be emulated
while time.monotonic() < end:
    storm()
