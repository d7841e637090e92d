"""The AMP probe on a real device: float16 with a loss scaler, memory saved, what would not fit refused, and never a wait."""

import pytest
import torch
from gpuwatch_hooks.amp import live
from torch import nn

import gpuwatch
from tests.hooks.recording import recording

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")]
REQUEST = {"first_step": 6, "rounds": 3, "block_steps": 3, "seed": 5, "ticket": 7, "dtype": 1}


def training(autocast, width=2048, batch=4096):
    """(model, optimizer, one step) of a perceptron whose activations are most of its memory."""
    torch.manual_seed(0)
    layers = [layer for _ in range(4) for layer in (nn.Linear(width, width), nn.GELU())]
    model = nn.Sequential(*layers, nn.BatchNorm1d(width), nn.Dropout(0.1), nn.Linear(width, 1)).cuda()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    scaler = torch.amp.GradScaler("cuda", init_scale=1024.0, enabled=autocast)
    inputs = torch.randn(batch, width, device="cuda")

    def step():
        optimizer.zero_grad()
        with torch.autocast("cuda", torch.float16, enabled=autocast):
            loss = model(inputs).float().square().mean()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()

    return model, optimizer, step


def facts_of(step, request=REQUEST, steps=60, silent=False):
    """What the probe told; with `silent`, any wait for the device on this thread raises while the plan is under way."""
    with recording() as session:
        session.media = lambda *_: True
        live.begin(session.recorder, request)
        probe = session.recorder.probes[-1]
        for _ in range(steps):
            if silent and probe._plan is not None and probe in session.recorder.probes:
                torch.cuda.synchronize()
                torch.cuda.set_sync_debug_mode("error")
            try:
                step()
            finally:
                torch.cuda.set_sync_debug_mode("default")
        torch.cuda.synchronize()
        for _ in range(3):
            step()
        return {name: value for facts in session.told for name, value in facts.items()}


@pytest.mark.parametrize(("autocast", "drop"), [(True, False), (True, True), (False, False)])
def test_speed_and_memory(autocast, drop):
    _, _, step = training(autocast)
    facts = facts_of(step, {**REQUEST, "drop": drop})
    assert facts["amp_probe_failed"] == ""
    assert facts["amp_variant"] == "float16"
    assert facts["amp_probe_dropped_batches"] == (15 if drop or not autocast else 0)
    assert facts["amp_speedup_ratio"] > 1.0
    assert 0.1 < facts["amp_memory_saving_ratio"] < 0.6


def test_nothing_waits_while_it_counts():
    """A job in float32 whose own loop never waits: the hooks must not either."""
    _, _, step = training(False)
    assert facts_of(step, {**REQUEST, "dtype": 2}, silent=True)["amp_probe_failed"] == ""


def test_a_float32_step_that_would_not_fit_is_refused_before_it_is_tried():
    _, _, step = training(True)
    for _ in range(3):
        step()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info()
    ballast = torch.empty(max(0, free - (64 << 20)), dtype=torch.uint8, device="cuda")
    try:
        failures = torch.cuda.memory_stats().get("num_ooms", 0)
        facts = facts_of(step)
        assert "a float32 step may take" in facts["amp_probe_failed"]
        assert torch.cuda.memory_stats().get("num_ooms", 0) == failures
    finally:
        del ballast
        torch.cuda.empty_cache()


def test_by_hand_every_precision_of_the_device():
    model, optimizer, step = training(False, width=1024, batch=2048)
    before = [tensor.clone() for tensor in model.state_dict().values()]
    result = gpuwatch.compare_amp(step, model, optimizer, rounds=3, block_steps=3)
    assert {"float32", "float16"} <= {line.variant for line in result.lines}
    assert all(line.peak_bytes > 0 for line in result.lines)
    assert all(map(torch.equal, before, model.state_dict().values()))
    assert torch.backends.cuda.matmul.allow_tf32 is False
