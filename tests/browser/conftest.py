"""One real Chromium for all tests of this folder, and a training process as far as the daemon can tell."""

import math
import struct

import pytest
from gpuwatch_hooks import wire

from tests.browser.chromium import PROGRAM, Chromium
from tests.intake.conftest import Client
from tests.state.recorded import step_payload


@pytest.fixture(scope="session")
def chromium():
    if PROGRAM is None:
        pytest.skip("needs chromium")
    browser = Chromium()
    yield browser
    browser.close()


@pytest.fixture
def browse(chromium):
    """browse(url, width=..., dark=...) opens a tab, which must have broken no policy and met no error by its end."""
    opened = []

    def go(url, **look):
        opened.append(chromium.page(url, **look))
        return opened[-1]

    yield go
    for page in opened:
        page.close()


class Trainer:
    """A run of `layers` whose steps come when they are told to."""

    def __init__(self, path, layers=("conv1.weight", "fc.weight", "fc.bias"), run="digits", **claims):
        self.layers = layers
        self.client = Client(path, slot_count=256, slot_bytes=8192).connect(run=run, **claims)
        numels = [64 * (index + 1) for index in range(len(layers))]
        self.client.numbered("names", table="tensor", version=1, first=0, names=list(layers), numels=numels)
        self.client.numbered("names", table="group", version=1, first=0, names=["all"], numels=[])
        self.step = 0

    def steps(self, count, **values):
        for _ in range(count):
            self.step += 1
            self._tables()
            known = {
                "loss": 2.0 / self.step,
                "grad_norm": 1.0 + math.sin(self.step) / 4,
                "step_seconds": 0.1,
                "data_seconds": 0.01,
                "forward_seconds": 0.03,
                "backward_seconds": 0.05,
                "optimizer_seconds": 0.01,
                "loss_scale": 65536.0,
                "update_ratio": 0.001,
                **values,
            }
            self.client.ring.write(wire.KIND_STEP, step_payload(self.step, known, groups=(0.1 / self.step, 0.0)))

    def _tables(self):
        count, write = len(self.layers), self.client.ring.write
        for family in range(3):
            cells = struct.pack(f"<{8 * count}f", *(0.5 * (row + 1) for row in range(count) for _ in range(8)))
            write(wire.KIND_TENSORS, wire.TENSORS_HEAD.pack(self.step, 0, family, 1, 0, count, 0xFF), cells)
        counts = struct.pack(f"<{64 * count}I", *(max(0, 100 - 10 * abs(40 - i)) for _ in range(count) for i in range(64)))
        write(wire.KIND_HISTOGRAMS, wire.HISTOGRAMS_HEAD.pack(self.step, 0, 0, 1, 0, count, -48), counts)

    def close(self):
        self.client.close()


@pytest.fixture
def train():
    """train(daemon, ...) -> a Trainer of that daemon."""
    made = []

    def start(daemon, **options):
        made.append(Trainer(daemon.socket, **options))
        return made[-1]

    yield start
    for each in made:
        each.close()
