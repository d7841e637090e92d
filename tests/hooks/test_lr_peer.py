"""The range test beside torch-lr-finder on the same model, data and seed: the same rates and the same losses, to the bit."""

import copy
import math

import pytest
import torch
from gpuwatch_hooks.lr_find import lr_find
from torch import nn

torch_lr_finder = pytest.importorskip("torch_lr_finder")
STEPS, LEAST, LARGEST = 40, 1e-4, 1.0


class Same:
    """A loader that gives the same batches in the same order to whoever asks."""

    def __init__(self):
        draw = torch.Generator().manual_seed(3)
        self.batches = [
            (torch.randn(16, 8, generator=draw), torch.randint(0, 3, (16,), generator=draw)) for _ in range(STEPS + 1)
        ]


def test_losses_and_rates_are_those_of_torch_lr_finder():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 3))
    twin, criterion, batches = copy.deepcopy(model), nn.CrossEntropyLoss(), Same().batches

    optimizer = torch.optim.SGD(model.parameters(), lr=LEAST)
    peer = torch_lr_finder.LRFinder(model, optimizer, criterion, device="cpu")
    loader = torch.utils.data.DataLoader(batches, batch_size=None)
    peer.range_test(loader, start_lr=LEAST, end_lr=LARGEST, num_iter=STEPS, step_mode="exp", smooth_f=0, diverge_th=1e9)

    ours, remaining = torch.optim.SGD(twin.parameters(), lr=LEAST), iter(batches)

    def step():
        inputs, labels = next(remaining)
        loss = criterion(twin(inputs), labels)
        ours.zero_grad()
        loss.backward()
        ours.step()
        return loss

    result = lr_find(step, ours, twin, steps=STEPS, min_lr=LEAST, max_lr=LARGEST)
    assert [loss for _, loss, _ in result.curve[:10]] == pytest.approx(peer.history["loss"][:10], rel=1e-6)
    # Its schedule reaches the last rate one step later than ours.
    peers = [LEAST * (LARGEST / LEAST) ** (i / (STEPS - 1)) for i in range(STEPS)]
    assert [rate for rate, _, _ in result.curve] == pytest.approx(peers, rel=1e-9)
    assert all(abs(math.log(a / b)) < 0.3 for (a, _, _), b in zip(result.curve, peer.history["lr"], strict=False))
