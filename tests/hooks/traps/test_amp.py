"""Loss scaling: true units, skipped steps, back-offs, whatever the optimizer and the order of calls."""

import math

import pytest
import torch
from torch import nn

from tests.hooks.recording import recording
from tests.hooks.traps.truth import CLOSE, norm

SCALE = 1024.0


def scaler_of(**options):
    return torch.amp.GradScaler("cpu", init_scale=SCALE, growth_interval=1000, **options)


def overflow(model):
    model[0].weight.grad[0, 0] = math.inf


def loss_of(model, batch):
    return nn.functional.mse_loss(model(batch[0]), batch[1])


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("unscale", [False, True])
def test_true_units_and_skips(model, batches, fused, unscale):
    """Traps 1 to 3: not fused, fused with scaled gradients, fused after unscale_."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=fused)
    scaler, norms, losses = scaler_of(), [], []
    with recording() as session:
        for step, batch in enumerate(batches[:8]):
            optimizer.zero_grad()
            loss = loss_of(model, batch)
            losses.append(loss.item())
            scaler.scale(loss).backward()
            if step == 3:
                overflow(model)
            norms.append(norm(model.parameters(), scaler.get_scale()))
            if unscale:
                scaler.unscale_(optimizer)
            scaler.step(optimizer)
            scaler.update()
    parts = session.parts()
    assert [part.step for part in parts] == list(range(1, 9))
    assert [part.values["loss"] for part in parts] == pytest.approx(losses, rel=1e-12)
    assert [part.values["grad_norm"] for part in parts] == pytest.approx(norms, rel=CLOSE)
    assert [part.values["skipped"] for part in parts] == [0, 0, 0, 1, 0, 0, 0, 0]
    assert [part.values["grad_nonfinite_count"] for part in parts] == [0, 0, 0, 1, 0, 0, 0, 0]
    assert [part.values["loss_scale"] for part in parts] == [SCALE] * 4 + [SCALE / 2] * 4
    assert [part.values["loss_scale_backoffs"] for part in parts] == [0, 0, 0, 0, 1, 0, 0, 0]
    assert all("grad_norm_clipped" not in part.values for part in parts)
    # which layer overflowed, and by how many entries
    rows = session.rows("gradient", step=4)[0]
    assert {name: row["nonfinite_count"] for name, row in rows.items()} == {
        "0.weight": 1.0,
        "0.bias": 0.0,
        "2.weight": 0.0,
        "2.bias": 0.0,
    }


def test_the_first_step_may_be_skipped(model, batches):
    """The search for the scale: nothing has stepped yet when the first overflow comes."""
    optimizer, scaler = torch.optim.SGD(model.parameters(), lr=1e-3), scaler_of()
    with recording() as session:
        for step, batch in enumerate(batches[:3]):
            optimizer.zero_grad()
            scaler.scale(loss_of(model, batch)).backward()
            if step == 0:
                overflow(model)
            scaler.step(optimizer)
            scaler.update()
    assert [part.values["skipped"] for part in session.parts()] == [1, 0, 0]
    assert session.rows("gradient", step=1)[0]["0.weight"]["nonfinite_count"] == 1


def test_rows_and_histograms_of_a_fused_optimizer_are_in_true_units(model, batches):
    tables = {}
    for fused in (False, True):
        torch.manual_seed(3)
        fresh = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 1))
        optimizer, scaler = torch.optim.SGD(fresh.parameters(), lr=0.0, fused=fused), scaler_of()
        with recording() as session:
            scaler.scale(loss_of(fresh, batches[0])).backward()
            scaler.step(optimizer)
            scaler.update()
        tables[fused] = session.rows()[0], session.histograms()[0]
    assert tables[True][1] == tables[False][1]
    for name, row in tables[False][0].items():
        assert tables[True][0][name] == pytest.approx(row, rel=1e-5), name


def test_the_scale_is_never_asked_for(model, batches, monkeypatch):
    """Trap 4: get_scale() waits for the device."""
    optimizer, scaler = torch.optim.SGD(model.parameters(), lr=1e-3), scaler_of()
    asked = []

    def get_scale(self):
        asked.append(self)

    monkeypatch.setattr(torch.amp.GradScaler, "get_scale", get_scale)
    with recording() as session:
        for batch in batches[:3]:
            scaler.scale(loss_of(model, batch)).backward()
            scaler.step(optimizer)
            scaler.update()
    assert [part.values["loss_scale"] for part in session.parts()] == [SCALE] * 3
    assert asked == []


def test_clipping_while_scaled(model, batches):
    """Trap 5: the norm before is the true one all the same, and what is left is what the optimizer got."""
    optimizer, scaler = torch.optim.SGD(model.parameters(), lr=1e-3), scaler_of()
    before, after = [], []
    with recording() as session:
        for batch in batches[:4]:
            optimizer.zero_grad()
            scaler.scale(loss_of(model, batch)).backward()
            before.append(norm(model.parameters(), SCALE))
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            after.append(norm(model.parameters(), SCALE))
            scaler.step(optimizer)
            scaler.update()
    parts = session.parts()
    assert [part.values["clipped_while_scaled"] for part in parts] == [1.0] * 4
    assert [part.values["grad_norm"] for part in parts] == pytest.approx(before, rel=CLOSE)
    assert [part.values["grad_norm_clipped"] for part in parts] == pytest.approx(after, rel=CLOSE)


@pytest.mark.parametrize("fused", [False, True])
def test_clipping_after_unscale(model, batches, fused):
    """Trap 3: what clipping is given then is in true units, and nobody has clipped what was scaled."""
    optimizer, scaler = torch.optim.SGD(model.parameters(), lr=1e-3, fused=fused), scaler_of()
    before, after = [], []
    with recording() as session:
        for batch in batches[:3]:
            optimizer.zero_grad()
            scaler.scale(loss_of(model, batch)).backward()
            scaler.unscale_(optimizer)
            before.append(norm(model.parameters()))
            nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            after.append(norm(model.parameters()))
            scaler.step(optimizer)
            scaler.update()
    parts = session.parts()
    assert [part.values["grad_norm"] for part in parts] == pytest.approx(before, rel=CLOSE)
    assert [part.values["grad_norm_clipped"] for part in parts] == pytest.approx(after, rel=CLOSE)
    assert [part.values["clipped_while_scaled"] for part in parts] == [0.0] * 3


@pytest.mark.parametrize("fused", [False, True])
def test_a_skip_belongs_to_the_optimizer_that_overflowed(batches, fused):
    """Trap 15: one scaler, two optimizers, one update: the back-off is for both, the skip for one."""
    first, second = nn.Linear(6, 1), nn.Linear(6, 1)
    optimizers = [torch.optim.Adam(m.parameters(), lr=1e-3, fused=fused) for m in (first, second)]
    scaler = scaler_of()
    with recording() as session:
        for step, (inputs, targets) in enumerate(batches[:5]):
            for optimizer in optimizers:
                optimizer.zero_grad()
            loss = nn.functional.mse_loss(first(inputs) + second(inputs), targets)
            scaler.scale(loss).backward()
            if step == 2:
                second.weight.grad[0, 0] = math.nan
            for optimizer in optimizers:
                scaler.step(optimizer)
            scaler.update()
    skipped = {(part.step, part.optimizer): part.values["skipped"] for part in session.parts()}
    assert [key for key, value in skipped.items() if value] == [(3, 1)]
    scales = [part.values["loss_scale"] for part in session.parts()]
    assert scales == [SCALE] * 6 + [SCALE / 2] * 4


def test_several_scalers(batches):
    """Trap 15: each optimizer with its own scaler and scale."""
    models = [nn.Linear(6, 1), nn.Linear(6, 1)]
    optimizers = [torch.optim.SGD(m.parameters(), lr=1e-3) for m in models]
    scalers = [torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=1000) for scale in (256.0, 4096.0)]
    losses, norms = [], []
    with recording() as session:
        for inputs, targets in batches[:3]:
            for model, optimizer, scaler in zip(models, optimizers, scalers, strict=True):
                optimizer.zero_grad()
                loss = nn.functional.mse_loss(model(inputs), targets)
                scaler.scale(loss).backward()
                losses.append(loss.item())
                norms.append(norm(model.parameters(), scaler.get_scale()))
                scaler.step(optimizer)
                scaler.update()
    parts = session.parts()
    assert [part.values["loss_scale"] for part in parts] == [256.0, 4096.0] * 3
    assert [part.values["loss"] for part in parts] == pytest.approx(losses, rel=1e-12)
    assert [part.values["grad_norm"] for part in parts] == pytest.approx(norms, rel=CLOSE)


@pytest.mark.parametrize(
    "root",
    [
        lambda scaler, loss: scaler.scale(loss),
        lambda scaler, loss: scaler.scale(loss) / 4,
        lambda scaler, loss: scaler.scale(loss / 4),
        lambda scaler, loss: scaler.scale(loss * 0.25),
        lambda scaler, loss: scaler.scale(loss).double() / 4,
        lambda scaler, loss: scaler.scale([loss / 4])[0],
    ],
)
def test_the_loss_is_unscaled_wherever_the_scale_was_put_in(model, batches, root):
    optimizer, scaler, losses = torch.optim.SGD(model.parameters(), lr=1e-3), scaler_of(), []
    count = 1 if root(scaler, torch.ones((), requires_grad=True)).item() == SCALE else 4
    with recording() as session:
        for start in (0, 4, 8):
            micro = [loss_of(model, batch) for batch in batches[start : start + count]]
            losses.append(sum(loss.item() for loss in micro) / count)
            for loss in micro:
                root(scaler, loss).backward()
            scaler.step(optimizer)
            scaler.update()
    assert [part.values["loss"] for part in session.parts()] == pytest.approx(losses, rel=1e-6)


def test_underflow_is_the_share_that_fp16_would_flush_at_this_scale(batches):
    model = nn.Linear(6, 1)
    optimizer, scaler = torch.optim.SGD(model.parameters(), lr=0.0), scaler_of()
    smallest = 2.0**-25 / SCALE
    with recording() as session:
        scaler.scale(loss_of(model, batches[0])).backward()
        scaler.unscale_(optimizer)
        model.weight.grad = torch.tensor([[smallest, smallest * 1.01, -smallest / 8, 0.0, 1.0, -1.0]])
        model.bias.grad = torch.tensor([0.0])
        flushed = (model.weight.grad * SCALE).half() == 0
        scaler.step(optimizer)
        scaler.update()
    assert int(flushed.sum()) == 3  # what fp16 itself does: two of five non-zero ones, and the zero
    assert session.parts()[0].values["grad_underflow_ratio"] == pytest.approx(2 / 5)
    rows = session.rows()[0]
    assert rows["weight"]["underflow_ratio"] == pytest.approx(2 / 5)
    assert rows["bias"]["underflow_ratio"] == 0.0


def test_without_a_scaler_there_is_no_scale(model, batches):
    """Trap 38: bf16 shows no made-up scale of 1, no skip, and no share lost to fp16."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    disabled = torch.amp.GradScaler("cpu", enabled=False)
    with recording() as session:
        for batch in batches[:3]:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = loss_of(model, batch)
            disabled.scale(loss).backward()
            disabled.step(optimizer)
            disabled.update()
    for part in session.parts():
        assert not {"loss_scale", "skipped", "loss_scale_backoffs", "grad_underflow_ratio"} & part.values.keys()
        assert part.values["autocast_dtype"] == 2.0
    assert "underflow_ratio" not in session.rows()[0]["0.weight"]
    assert {"precision": "bf16"} in session.told


def test_a_scaler_class_that_comes_later(model, batches):
    """FSDP's ShardedGradScaler is imported after the hooks and has a `scale` of its own."""
    losses = []
    with recording() as session:

        class Sharded(torch.amp.GradScaler):
            def scale(self, outputs):
                return outputs * self._scale

            def update(self, new_scale=None):
                super().update(new_scale)

        optimizer, scaler = torch.optim.SGD(model.parameters(), lr=1e-3), Sharded("cpu", init_scale=SCALE, growth_interval=1000)
        scaler._lazy_init_scale_growth_tracker(torch.device("cpu"))
        for number, batch in enumerate(batches[:4]):
            optimizer.zero_grad()
            loss = loss_of(model, batch)
            losses.append(loss.item())
            scaler.scale(loss).backward()
            if number == 2:
                overflow(model)
            scaler.step(optimizer)
            scaler.update()
    parts = session.parts()
    assert [part.values["loss"] for part in parts][1:] == pytest.approx(losses[1:], rel=1e-12)
    assert [part.values["skipped"] for part in parts] == [0, 0, 1, 0]
    assert parts[-1].values["loss_scale_backoffs"] == 1


def test_a_scale_that_the_user_sets_is_no_back_off(model, batches):
    optimizer, scaler = torch.optim.SGD(model.parameters(), lr=1e-3), scaler_of()
    with recording() as session:
        for number, batch in enumerate(batches[:3]):
            scaler.scale(loss_of(model, batch)).backward()
            scaler.step(optimizer)
            scaler.update(64.0 if number == 0 else None)
    assert [part.values["loss_scale"] for part in session.parts()] == [SCALE, 64.0, 64.0]
    assert [part.values["loss_scale_backoffs"] for part in session.parts()] == [0, 0, 0]
