"""Spends 5 s inside importlib's own lock, as an import does for a microsecond, then trains as trains.py does."""

import importlib
import runpy
import time
from pathlib import Path

import torch  # noqa: F401  # what the preflight looks for


class Slow:
    """In place of the lock that guards a module lock's fields."""

    def __enter__(self):
        print("locked", flush=True)
        end = time.monotonic() + 5  # an attach on a busy machine takes a second or two to get there
        while time.monotonic() < end:
            pass

    def __exit__(self, *_):
        pass


lock = importlib._bootstrap._ModuleLock("gpuwatch_test")
lock.lock = Slow()
lock.acquire()
runpy.run_path(str(Path(__file__).with_name("trains.py")), run_name="__main__")
