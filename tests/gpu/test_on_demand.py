"""Traces with the device's activities, and a snapshot at a real out-of-memory error."""

import gzip
import json
import pickle

import pytest
import torch
from gpuwatch_hooks import on_demand
from torch import nn

from tests.hooks.recording import recording

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")]


@pytest.fixture
def job():
    """(a session that records a training on the device, its media as (kind, tag, data), one step)."""
    model = nn.Linear(256, 256).cuda()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    media = []

    def step():
        model(torch.ones(64, 256, device="cuda")).sum().backward()
        optimizer.step()

    with recording() as session:
        session.step = 1
        session.media = lambda kind, tag, _step, _shape, data: media.append((kind, tag, data() if callable(data) else data))
        step()
        yield session, media, step


def test_a_trace_has_the_kernels(job):
    session, media, step = job
    on_demand.begin(session, {"t": "trace", "steps": 2, "ticket": 7})
    for _ in range(5):
        step()
    ((kind, tag, data),) = media
    assert (kind, tag) == ("trace", "7")
    assert "kernel" in {event.get("cat") for event in json.loads(gzip.decompress(data))["traceEvents"]}


def test_a_snapshot_at_an_out_of_memory_error(job):
    _, media, step = job
    _, whole = torch.cuda.mem_get_info()
    with pytest.raises(torch.cuda.OutOfMemoryError):
        torch.empty(2 * whole, dtype=torch.uint8, device="cuda")
    ((kind, tag, data),) = media
    assert (kind, tag) == ("memory_snapshot", on_demand.SNAPSHOT_TAG)
    assert pickle.loads(gzip.decompress(data))["segments"]
    step()


def test_facts_of_the_device(job):
    session, _, _ = job
    told = {name: value for facts in session.told for name, value in facts.items()}
    assert told["device_memory_bytes"] == torch.cuda.get_device_properties(0).total_memory
    assert told["device_name"] == torch.cuda.get_device_name(0)
    assert "." in told["device_compute_capability"]
