"""Logging of CUDA tensors: the right numbers, and never a wait on the caller's thread (torch's own sync detector is on)."""

import struct

import pytest
import torch
from gpuwatch_hooks import bins, feature_maps, log, log_histogram, log_images, session, snapshot

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


@pytest.fixture
def outbox(monkeypatch):
    """The outbox of a session that nobody empties."""
    current = session.Session()
    monkeypatch.setattr(session, "_current", current)
    yield current.outbox
    current.detach()


@pytest.fixture
def no_waiting():
    """Any synchronising operation of the calling thread raises, from here to the end of the test."""
    torch.zeros(1, device="cuda")
    torch.empty(1 << 16, pin_memory=True)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    yield
    torch.cuda.set_sync_debug_mode("default")


def test_the_detector_detects(no_waiting):
    with pytest.raises(RuntimeError, match="synchron"):
        torch.ones(3, device="cuda").sum().item()


def test_a_snapshot_is_the_tensor_of_its_moment(no_waiting):
    tensor = torch.arange(1 << 20, device="cuda", dtype=torch.float32)
    taken = snapshot.take(tensor)
    tensor.zero_()
    assert torch.equal(taken.read(), torch.arange(1 << 20, dtype=torch.float32))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int32])
def test_bins_are_those_of_the_cpu(no_waiting, dtype):
    torch.manual_seed(0)
    host = (torch.randn(5_000_001, dtype=torch.float64) * 30).to(dtype)
    if dtype.is_floating_point:
        host[7], host[9] = float("nan"), float("inf")
    device = host.pin_memory().to("cuda", non_blocking=True)
    rows, finite = bins.rows(snapshot.take(bins.measure(device)).read())
    expected, expected_finite = bins.rows(bins.measure(host))
    assert finite == expected_finite
    ours, theirs = (struct.unpack("<192d", data) for data in (rows, expected))
    assert ours[0::3] == pytest.approx(theirs[0::3], rel=1e-12)
    assert sum(abs(a - b) for a, b in zip(ours[2::3], theirs[2::3], strict=True)) <= 8  # on edges that differ in the last bit


def test_nothing_that_is_logged_waits(no_waiting, outbox):
    batch = torch.rand(9, 3, 32, 32, pin_memory=True).to("cuda", non_blocking=True)
    layer = torch.nn.Identity()
    feature_maps(layer, every=1)
    layer(batch)
    log("loss", batch.mean(), 1)
    log_images("inputs", batch, 1)
    log_histogram("values", batch, 1)
    torch.cuda.set_sync_debug_mode("default")
    ((_, tag, _, value, _),) = outbox._scalars
    assert (tag, float(value)) == ("loss", pytest.approx(batch.mean().item()))
    kinds = {item[0]: item[4]() for item in outbox._media}
    assert kinds["images"] == (batch[:8].cpu().permute(0, 2, 3, 1) * 255).to(torch.uint8).contiguous().numpy().tobytes()
    assert sum(struct.unpack("<192d", kinds["histogram"])[2::3]) == batch.numel()
    assert len(kinds["feature_maps"]) == 32 * (3 * 32 + 2)


def test_a_default_device_does_not_get_in_the_way(outbox):
    torch.set_default_device("cuda")
    try:
        log("loss", torch.ones(()), 1)
        log_histogram("values", torch.ones(5), 1)
        assert len(outbox._scalars) == len(outbox._media) == 1
    finally:
        torch.set_default_device(None)
