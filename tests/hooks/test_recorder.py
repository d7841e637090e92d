"""The recorder as a whole: phases, numbering, tables of any length, values that come from a device, threads."""

import math
import threading
import time

import pytest
import torch
from gpuwatch_hooks import reading, wire
from gpuwatch_hooks.kernels import foreach
from gpuwatch_hooks.part import Part
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from tests.hooks.recording import recording

PHASES = ("data", "forward", "backward", "optimizer", "other")


def phases_of(part):
    return [part.values[f"{phase}_seconds"] for phase in PHASES]


class Slow(torch.autograd.Function):
    """A layer whose forward and backward take a known time."""

    @staticmethod
    def forward(ctx, inputs, seconds):
        time.sleep(seconds)
        ctx.seconds = seconds
        return inputs.clone()

    @staticmethod
    def backward(ctx, gradient):
        time.sleep(2 * ctx.seconds)
        return gradient, None


class SlowData(torch.utils.data.Dataset):
    def __len__(self):
        return 6

    def __getitem__(self, _index):
        time.sleep(0.03)
        return torch.randn(6)


class SlowSGD(torch.optim.SGD):
    def step(self, closure=None):
        time.sleep(0.04)
        return super().step(closure)


def test_phases_say_where_the_time_went():
    model = nn.Linear(6, 1)
    optimizer = SlowSGD(model.parameters(), lr=1e-3)
    with recording() as session:
        for inputs in DataLoader(SlowData(), batch_size=1):
            optimizer.zero_grad()
            Slow.apply(model(inputs).sum(), 0.02).backward()
            optimizer.step()
            time.sleep(0.01)
    for part in session.parts()[1:]:
        data, forward, backward, step, other = phases_of(part)
        assert sum(phases_of(part)) == pytest.approx(part.values["step_seconds"], rel=1e-9)
        assert data >= 0.03
        assert forward >= 0.02
        assert backward >= 0.04
        assert step >= 0.04
        assert other >= 0.01  # after the step, before the next batch


def test_phases_without_a_loader_and_with_autocast():
    """What precedes autocast is not forward; what precedes a backward is."""
    model = nn.Linear(6, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    with recording() as session:
        for _ in range(4):
            time.sleep(0.03)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = Slow.apply(model(torch.randn(2, 6)).sum(), 0.02)
            time.sleep(0.01)
            loss.backward()
            optimizer.step()
    for part in session.parts()[1:]:
        _, forward, _, _, other = phases_of(part)
        assert other >= 0.03
        assert 0.03 <= forward < part.values["step_seconds"] - other
        assert 0.3 < part.values["autocast_ratio"] < 0.9


def test_the_loader_of_another_thread_is_not_this_ones_wait(model_and_batches):
    model, batches = model_and_batches
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    stop = threading.Event()

    def prefetch():
        while not stop.is_set():
            for _ in DataLoader(TensorDataset(torch.randn(8, 2)), batch_size=1):
                time.sleep(0.001)

    thread = threading.Thread(target=prefetch)
    with recording() as session:
        thread.start()
        try:
            for inputs, targets in batches[:5]:
                nn.functional.mse_loss(model(inputs), targets).backward()
                optimizer.step()
        finally:
            stop.set()
            thread.join()
    assert [part.values["data_seconds"] for part in session.parts()[1:]] == [0.0] * 4


@pytest.fixture
def model_and_batches():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 1))
    return model, [(x, x.sum(1, keepdim=True)) for x in torch.randn(12, 8, 6)]


def test_the_first_step_has_no_duration(model_and_batches):
    model, batches = model_and_batches
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    with recording() as session:
        nn.functional.mse_loss(model(batches[0][0]), batches[0][1]).backward()
        optimizer.step()
    assert "step_seconds" not in session.parts()[0].values


class Delayed:
    """Events of a device that is slow: nothing has arrived before it is asked `patience` times."""

    def __init__(self, patience):
        self.left = patience

    def query(self):
        self.left -= 1
        return self.left < 0


@pytest.mark.parametrize("patience", [0, 1, 7])
def test_values_that_come_from_a_device(monkeypatch, model_and_batches, patience):
    """The device's way on the CPU: every value through the readback, statistics by the device's kernel, arrival delayed."""
    from gpuwatch_hooks import readback

    _, batches = model_and_batches

    def train():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 1))
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
        scaler = torch.amp.GradScaler("cpu", init_scale=512.0, growth_interval=1000)
        for number, (inputs, targets) in enumerate(batches[:6]):
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(model(inputs), targets)
            scaler.scale(loss).backward()
            if number == 2:
                model[0].weight.grad[0, 0] = math.inf
            nn.utils.clip_grad_norm_(model.parameters(), 100.0)
            scaler.step(optimizer)
            scaler.update()

    with recording() as at_once:
        train()
    monkeypatch.setattr(Part, "at_once", ())
    monkeypatch.setattr(reading, "choose", lambda _device: foreach)
    original = readback.Readback.launch

    def launch(self):
        original(self)
        self._copies = [(Delayed(patience), buffer, spans) for _, buffer, spans in self._copies]

    monkeypatch.setattr(readback.Readback, "launch", launch)
    published = []
    with recording() as session:
        train()
        published.append(len(session.parts()))
    assert (published[0] < 6) == (patience > 0)
    parts = session.parts()
    assert [part.step for part in parts] == [1, 2, 3, 4, 5, 6]
    timed = {"hook_seconds", "overhead_ratio", "step_seconds", *(f"{phase}_seconds" for phase in PHASES)}
    for here, there in zip(at_once.parts(), parts, strict=True):
        assert here.values.keys() == there.values.keys()
        for name in here.values.keys() - timed:
            assert there.values[name] == pytest.approx(here.values[name], rel=1e-5), name
        assert there.groups == here.groups
    for here, there in zip(at_once.rows(), session.rows(), strict=True):
        for name, row in here.items():
            assert there[name] == pytest.approx(row, rel=1e-4, abs=1e-7), name
    assert session.histograms() == at_once.histograms()


def test_a_device_that_never_delivers_loses_the_oldest(monkeypatch, model_and_batches):
    from gpuwatch_hooks import readback, recorder

    model, batches = model_and_batches
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    monkeypatch.setattr(Part, "at_once", ())
    monkeypatch.setattr(readback.Readback, "ready", lambda _self: False)
    monkeypatch.setattr(recorder, "MAX_WAITING_PARTS", 3)
    with recording() as session:
        for inputs, targets in batches[:8]:
            nn.functional.mse_loss(model(inputs), targets).backward()
            optimizer.step()
        assert session.dropped == ["not_ready"] * 5
        session.recorder._waiting.clear()


@pytest.mark.parametrize("count", [600, 2000, 2300])
def test_tables_of_any_length(count):
    """Longer than a slot: split; longer than the name table: the rest is one row, `_other`, with the same totals."""
    parameters = [nn.Parameter(torch.full((1 + i % 3,), 0.5)) for i in range(count)]
    optimizer = torch.optim.SGD(parameters, lr=0.0)
    with recording() as session:
        for parameter in parameters:
            parameter.grad = torch.full_like(parameter, 2.0)
        optimizer.step()
    rows = session.rows()[0]
    names, numels = session.tables["tensor"][1:]
    assert len(rows) == len(names) == min(count, wire.MAX_TENSORS)
    assert sum(numels) == sum(p.numel() for p in parameters)
    total = math.sqrt(sum(row["norm"] ** 2 for row in rows.values()))
    assert session.parts()[0].values["grad_norm"] == pytest.approx(total, rel=1e-6)
    assert (wire.OTHER_NAME in rows) == (count > wire.MAX_TENSORS)
    if wire.OTHER_NAME in rows:
        other = rows[wire.OTHER_NAME]
        assert (other["absmax"], other["mean_abs"], other["zero_ratio"]) == (2.0, 2.0, 0.0)
        assert sum(session.histograms()[0][wire.OTHER_NAME]) == numels[-1]


def test_two_optimizers_share_the_table():
    first, second = ([nn.Parameter(torch.ones(2)) for _ in range(1500)] for _ in range(2))
    optimizers = [torch.optim.SGD(parameters, lr=0.0) for parameters in (first, second)]
    with recording(histograms=False) as session:
        for _ in range(2):
            for parameters, optimizer in zip((first, second), optimizers, strict=True):
                for parameter in parameters:
                    parameter.grad = torch.ones(2)
                optimizer.step()
    assert [len(rows) for rows in session.rows("gradient", step=2)] == [1500, 500]
    assert len(set(session.tables["tensor"][1])) == 2000
    norms = [part.values["grad_norm"] for part in session.parts()]
    assert norms == pytest.approx([math.sqrt(3000)] * 4)


def test_taken_out_and_put_in_again(model_and_batches):
    model, batches = model_and_batches
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)

    def steps(some):
        for inputs, targets in some:
            nn.functional.mse_loss(model(inputs), targets).backward()
            optimizer.step()

    with recording() as session:
        steps(batches[:2])
        session.recorder.remove()
        session.ledger.remove()
        steps(batches[2:4])
        assert len(session.parts()) == 2
        session.recorder.install()
        steps(batches[4:6])
    assert len(session.parts()) == 4


def test_every_patch_is_the_original_again():
    from torch.amp.autocast_mode import autocast
    from torch.nn.utils import clip_grad
    from torch.utils.data import dataloader

    places = [
        (torch.autograd, "backward"),
        (torch.amp.GradScaler, "step"),
        (torch.amp.GradScaler, "scale"),
        (torch.amp.GradScaler, "update"),
        (clip_grad, "_get_total_norm"),
        (clip_grad, "_clip_grads_with_norm_"),
        (clip_grad, "_group_tensors_by_device_and_dtype"),
        (autocast, "__enter__"),
        (autocast, "__exit__"),
        (dataloader._BaseDataLoaderIter, "__next__"),
    ]
    before = [vars(owner)[name] for owner, name in places]
    with recording():
        during = [vars(owner)[name] for owner, name in places]
    after = [vars(owner)[name] for owner, name in places]
    assert all(a is b for a, b in zip(before, after, strict=True))
    assert all(a is not b for a, b in zip(before, during, strict=True))


def test_two_threads_that_train_at_once():
    """One of them is recorded, the other is told of; neither notices."""
    results = {}

    together = threading.Barrier(2)

    def train(name):
        model = nn.Linear(6, 1)
        nn.init.constant_(model.weight, 0.3)
        nn.init.zeros_(model.bias)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
        for _ in range(60):
            optimizer.zero_grad()
            loss = model(torch.ones(4, 6)).square().mean()
            loss.backward()
            if name != "alone":
                together.wait(10)
            optimizer.step()
        results[name] = loss.item()

    train("alone")
    with recording() as session:
        threads = [threading.Thread(target=train, args=(name,)) for name in ("one", "two")]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert results["one"] == results["two"] == results["alone"]
    parts = session.parts()
    assert len(parts) == 60
    for part in parts[1:]:
        if "step_seconds" in part.values:
            assert sum(phases_of(part)) == pytest.approx(part.values["step_seconds"])


def test_a_thread_that_trains_after_the_main_one(monkeypatch, model_and_batches):
    from gpuwatch_hooks import recorder

    model, batches = model_and_batches
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)

    def steps(some):
        for inputs, targets in some:
            nn.functional.mse_loss(model(inputs), targets).backward()
            optimizer.step()

    with recording() as session:
        steps(batches[:2])
        thread = threading.Thread(target=steps, args=(batches[2:4],))
        thread.start()
        thread.join()
        assert len(session.parts()) == 2  # a moment later it might be anything
        assert [event.code for event in session.events()] == ["notice"]
        monkeypatch.setattr(recorder, "SILENCE_NS", 0)
        thread = threading.Thread(target=steps, args=(batches[4:6],))
        thread.start()
        thread.join()
    assert len(session.parts()) == 4
