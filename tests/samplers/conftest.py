"""A supervisor with real children over the fake driver, driven from the test's own thread."""

import time

import pytest

from gpuwatch.config import Sampling
from gpuwatch.samplers.supervisor import Supervisor
from gpuwatch.state.gpus import Gpus
from tests.fake_nvml.driver import FakeDriver


class Sampled:
    """`gpus` as the daemon would see them; turns of the supervisor happen while a test waits."""

    def __init__(self, fake, **sampling):
        self.fake = fake
        self.gpus = Gpus()
        self.supervisor = Supervisor(self.gpus, Sampling(**sampling))
        self.busy_seconds = 1.0  # what a busy machine may add to a time that is promised

    def turns(self, seconds):
        """Lets time go by."""
        self.until(lambda: False, seconds, fail=False)

    def until(self, condition, seconds=60.0, *, fail=True):
        """The first true value of `condition()`, and how long that took in seconds."""
        began = time.monotonic()
        while True:
            self.supervisor.turn()
            value = condition()
            elapsed = time.monotonic() - began
            if value or elapsed > seconds:
                assert value or not fail, f"not within {seconds} s; {self.describe()}"
                return value, elapsed
            time.sleep(0.02)

    def gpu(self, label):
        """The GPU with this label, or None."""
        return next((gpu for gpu in self.gpus if gpu.label == str(label)), None)

    def up(self, *labels):
        """Whether all of these GPUs are up (all that there are, without labels)."""
        found = [self.gpu(label) for label in labels] if labels else list(self.gpus)
        return bool(found) and all(gpu is not None and gpu.up for gpu in found)

    def value(self, label, name, **labels):
        """A reading of a GPU by the contract's name, or None."""
        return self.gpu(label).values.get((name, tuple(labels.items())))

    def describe(self):
        return self.gpus.state, self.gpus.message, [(gpu.label, gpu.up, gpu.reason) for gpu in self.gpus]


@pytest.fixture
def sampled(tmp_path, monkeypatch):
    """sampled([gpu, ...], hide=..., memory_hz=...) -> Sampled, whose GPUs are all up."""
    made = []

    def make(gpus, *, hide=(), wait=True, prepare=lambda fake: None, **sampling):
        fake = FakeDriver(tmp_path, gpus, hide=hide)
        prepare(fake)
        fake.write()
        for name, value in fake.environment.items():
            monkeypatch.setenv(name, value)
        made.append(Sampled(fake, **sampling))
        if wait:
            # On an idle machine a child's first line comes after 0.15 s: what it takes here says how busy this one is.
            _, seconds = made[-1].until(lambda: len(made[-1].gpus.by_uuid) >= len(gpus) and made[-1].up())
            made[-1].busy_seconds = max(1.0, 5 * seconds)
        return made[-1]

    yield make
    for each in made:
        each.fake.faults.clear()
        for gpu in each.fake.gpus:
            gpu.faults.clear()
        each.fake.write()
        pids = each.supervisor.child_pids()
        each.supervisor.close(20)
        assert not each.supervisor.child_pids(), f"left behind: {pids}"
