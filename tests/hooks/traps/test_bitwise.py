"""The hooks change no bit of what is trained: the same run with and without them."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from tests.hooks.recording import recording


def plain(model, optimizer, loader):
    for inputs, targets in loader:
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(inputs), targets)
        loss.backward()
        optimizer.step()
        yield loss.item()


def bf16(model, optimizer, loader):
    for inputs, targets in loader:
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = nn.functional.mse_loss(model(inputs), targets)
        loss.backward()
        optimizer.step()
        yield loss.item()


def scaled(model, optimizer, loader):
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**14, growth_interval=3)
    for number, (inputs, targets) in enumerate(loader):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.float16):
            loss = nn.functional.mse_loss(model(inputs), targets)
        scaler.scale(loss).backward()
        if number == 4:
            model[0].weight.grad[0, 0] = float("inf")
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        scaler.step(optimizer)
        scaler.update()
        yield loss.item()
        yield scaler.get_scale()


def clipped(model, optimizer, loader):
    for inputs, targets in loader:
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(inputs), targets)
        loss.backward()
        yield nn.utils.clip_grad_norm_(model.parameters(), 0.5).item()
        nn.utils.clip_grad_value_(model.parameters(), 0.01)
        optimizer.step()
        yield loss.item()


def accumulated(model, optimizer, loader):
    for number, (inputs, targets) in enumerate(loader):
        loss = nn.functional.mse_loss(model(inputs), targets) / 3
        loss.backward()
        yield loss.item()
        if number % 3 == 2:
            optimizer.step()
            optimizer.zero_grad()


def closures(model, _optimizer, loader):
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=4)
    for inputs, targets in loader:

        def closure():
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(model(inputs), targets)  # noqa: B023 - called within this turn
            loss.backward()
            return loss

        yield optimizer.step(closure).item()


LOOPS = [plain, bf16, scaled, clipped, accumulated, closures]


@pytest.mark.parametrize("loop", LOOPS, ids=lambda loop: loop.__name__)
def test_the_same_bits(loop):
    def run():
        torch.manual_seed(11)
        model = nn.Sequential(nn.Linear(6, 12), nn.Dropout(0.2), nn.Tanh(), nn.Linear(12, 1))
        data = TensorDataset(torch.randn(96, 6), torch.randn(96, 1))
        loader = DataLoader(data, batch_size=8, shuffle=True)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        values = list(loop(model, optimizer, loader))
        return values, [p.detach().clone() for p in model.parameters()], torch.get_rng_state()

    values, weights, random_state = run()
    with recording() as session:
        again, again_weights, again_state = run()
    assert session.parts()
    assert again == values
    assert all(torch.equal(a, b) for a, b in zip(again_weights, weights, strict=True))
    assert torch.equal(again_state, random_state)
