"""Traps 4, 30 and 31 on a real device: no synchronisation, graph capture, other streams; the same truth as on the CPU."""

import math

import pytest
import torch
from torch import nn

from tests.hooks.recording import recording
from tests.hooks.traps.truth import CLOSE, norm

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")]


@pytest.fixture
def job(model, batches):
    """A model, its optimizer and batches on the device."""
    model = model.cuda()
    return model, [(x.cuda(), y.cuda()) for x, y in batches]


@pytest.fixture
def no_synchronisation():
    """torch raises at every operation that waits for the device."""
    torch.cuda.set_sync_debug_mode("error")
    yield
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("fused", [False, True])
def test_nothing_waits_for_the_device(job, no_synchronisation, fused):
    model, batches = job
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=fused)
    with recording() as session:
        for inputs, targets in batches:
            optimizer.zero_grad()
            with torch.autocast("cuda", dtype=torch.bfloat16):
                loss = nn.functional.mse_loss(model(inputs), targets)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
    assert len(session.parts()) == len(batches)
    assert session.faults == []


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("unscale", [False, True])
def test_true_units_and_skips(job, fused, unscale):
    model, batches = job
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=fused)
    scaler = torch.amp.GradScaler("cuda", init_scale=1024.0, growth_interval=1000)
    norms, losses = [], []
    with recording() as session:
        for step, (inputs, targets) in enumerate(batches[:8]):
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(model(inputs), targets)
            losses.append(loss.item())
            scaler.scale(loss).backward()
            if step == 3:
                model[0].weight.grad[0, 0] = math.inf
            norms.append(norm(model.parameters(), scaler.get_scale()))
            if unscale:
                scaler.unscale_(optimizer)
            scaler.step(optimizer)
            scaler.update()
    parts = session.parts()
    assert [part.values["loss"] for part in parts] == pytest.approx(losses, rel=1e-6)
    assert [part.values["grad_norm"] for part in parts] == pytest.approx(norms, rel=CLOSE)
    assert [part.values["skipped"] for part in parts] == [0, 0, 0, 1, 0, 0, 0, 0]
    assert [part.values["loss_scale"] for part in parts] == [1024.0] * 4 + [512.0] * 4
    assert sum(part.values["loss_scale_backoffs"] for part in parts) == 1
    assert {part.values["torch_device_index"] for part in parts} == {0.0}
    assert all(0 < part.values["torch_allocated_bytes"] <= part.values["torch_allocated_peak_bytes"] for part in parts)


def test_another_stream(job):
    model, batches = job
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    stream, norms = torch.cuda.Stream(), []
    stream.wait_stream(torch.cuda.current_stream())
    with recording() as session, torch.cuda.stream(stream):
        for inputs, targets in batches[:5]:
            optimizer.zero_grad()
            nn.functional.mse_loss(model(inputs), targets).backward()
            optimizer.step()
            norms.append(norm(model.parameters()))
    assert [part.values["grad_norm"] for part in session.parts()] == pytest.approx(norms, rel=CLOSE)


def test_a_graph_that_is_captured(job):
    """Nothing is read or allocated during capture; the replays call no hook, and the run says so."""
    model, batches = job
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, capturable=True)
    static = tuple(tensor.clone() for tensor in batches[0])

    def step():
        optimizer.zero_grad(set_to_none=False)
        nn.functional.mse_loss(model(static[0]), static[1]).backward()
        optimizer.step()

    with recording() as session:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                step()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step()
        for _ in range(5):
            graph.replay()
        torch.cuda.synchronize()
    assert len(session.parts()) == 3
    assert [event.code for event in session.events("graph_capture")] == ["graph_capture"]
    assert session.faults == []
