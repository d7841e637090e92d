"""Every statistic of a step at once, of every kind of tensor, through the whole recorder, against the slow float64 twin.

The kernels have their own comparison (../hooks/kernels/test_statistics.py); here nothing is called by itself: a real
optimizer steps, and what the daemon's decoder reads out of the ring must be what the twin says of the tensors.
"""

import math

import pytest
import torch
from gpuwatch_hooks import wire
from torch import nn

from tests.hooks.kernels import twin
from tests.hooks.recording import recording

BAD = [math.nan, math.inf, -math.inf, -0.0, 0.0, 1e-42, -1e-42, 1e-30, 3e38, -2.5]
RATE, DECAY = 0.125, 0.25  # exact in every type


class Kinds(nn.Module):
    """One parameter of each kind; `tied` and `tied_again` are one tensor."""

    def __init__(self):
        super().__init__()
        made = torch.Generator().manual_seed(3)

        def normal(*shape, dtype=torch.float32):
            return nn.Parameter(torch.randn(*shape, generator=made, dtype=torch.float64).to(dtype))

        self.bad = normal(10)
        self.bf16 = normal(40, 30, dtype=torch.bfloat16)
        self.fp16 = normal(70, dtype=torch.float16)
        self.fp64 = normal(5, 7, dtype=torch.float64)
        self.tiny = nn.Parameter(torch.full((64,), 1e-25))
        self.scalar = nn.Parameter(torch.tensor(-1.5))
        self.empty = nn.Parameter(torch.empty(0, 3))
        self.strided = nn.Parameter(torch.randn(12, 9, generator=made).t())
        self.large = normal(3000)
        self.large_tiny = nn.Parameter(torch.full((3000,), 1e-25))
        self.gains = nn.ParameterList([normal(16) for _ in range(60)])  # many of one size are read as a matrix
        self.complex = nn.Parameter(torch.randn(6, generator=made, dtype=torch.float32).to(torch.complex64) * (1 + 2j))
        self.embed = normal(8, 4)
        self.tied = normal(9)
        self.tied_again = self.tied
        self.unused = normal(3)
        self.frozen = nn.Parameter(torch.ones(4), requires_grad=False)


def gradients(model):
    """A gradient for each tensor that gets one."""
    made = torch.Generator().manual_seed(4)
    for name, parameter in model.named_parameters():
        if name in ("unused", "frozen"):
            continue
        gradient = torch.randn(parameter.shape, generator=made, dtype=torch.float64).to(parameter.dtype)
        if name == "bad":
            gradient = torch.tensor(BAD)
        elif name in ("tiny", "large_tiny"):
            gradient = torch.full(parameter.shape, 1e-25)
        elif name == "strided":
            gradient = torch.randn(12, 9, generator=made).t()
        elif name == "embed":
            rows = torch.tensor([[1, 1, 5]])
            gradient = torch.sparse_coo_tensor(rows, torch.ones(3, 4), parameter.shape, check_invariants=True)
        parameter.grad = gradient


@pytest.fixture(scope="module")
def step():
    """What was recorded of one step, the model before it, and the model with its gradients after it."""
    model = Kinds()
    gradients(model)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    seen = {name: p.grad for name, p in model.named_parameters()}
    kept = {name: g.clone() if g is not None else None for name, g in seen.items()}
    groups = [{"params": [model.embed], "weight_decay": 0.0}]
    groups.append({"params": [p for p in model.parameters() if p is not model.embed], "lr": RATE / 2})
    optimizer = torch.optim.SGD(groups, lr=RATE, weight_decay=DECAY, foreach=False)
    with recording() as session:
        optimizer.step()
    assert all(p.grad is seen[name] for name, p in model.named_parameters())
    return session, before, {name: p.detach() for name, p in model.named_parameters()}, kept


def names_of(session):
    return {name: name.partition("=")[0] for name in session.tables["tensor"][1]}


def every(tensors):
    return [x for tensor in tensors if tensor is not None for x in twin.values(tensor)]


def test_each_tensor_has_one_row_also_a_shared_one(step):
    session, before, _, _ = step
    names = session.tables["tensor"][1]
    assert sorted(names_of(session).values()) == sorted(before)
    assert "tied=tied_again" in names
    assert session.tables["tensor"][2] == [before[short].numel() for short in names_of(session).values()]


def test_the_steps_own_fields(step):
    session, before, after, kept = step
    (part,) = session.parts()
    wanted = twin.row(every(kept.values()))
    # a complex number counts as two; of a sparse gradient only what it holds is read: 2 rows of 4 instead of 8 of 4
    read = len(every(kept.values())) - 24
    assert part.values["grad_norm"] == pytest.approx(wanted["norm"], rel=1e-6)
    assert part.values["grad_absmax"] == pytest.approx(wanted["absmax"], rel=1e-6)
    assert part.values["grad_nonfinite_count"] == wanted["nonfinite_count"] == 3
    zeros = wanted["zero_ratio"] * (read + 24) - 24
    assert round(zeros) == 2 + 6  # 0.0 and -0.0, and the imaginary parts
    assert part.values["grad_zero_ratio"] * read == pytest.approx(zeros)
    assert part.values["tensors_without_gradient"] == 1  # the frozen one wants none
    assert part.values["weight_norm"] == pytest.approx(twin.row(every(before.values()))["norm"], rel=1e-6)
    followed = [name for name, tensor in before.items() if name != "frozen" and not tensor.is_complex()]
    changes = [after[name].double() - before[name].double() for name in followed]
    base = twin.row(every(before[name] for name in followed))["norm"]
    assert part.values["update_ratio"] == pytest.approx(twin.row(every(changes))["norm"] / base, rel=1e-3)
    assert part.groups == ((RATE, 0.0), (RATE / 2, DECAY))
    assert not {"loss", "loss_scale", "skipped", "grad_norm_clipped", "grad_underflow_ratio"} & part.values.keys()


@pytest.mark.parametrize("family", ["gradient", "weight", "update"])
def test_the_rows(step, family):
    session, before, after, kept = step
    (rows,) = session.rows(family)
    for name, short in names_of(session).items():
        tensor = {"gradient": kept, "weight": before, "update": before}[family][short]
        if family == "update" and (short == "frozen" or tensor.is_complex()):
            tensor = None
        elif family == "update":
            tensor = after[short].double() - before[short].double()
        if tensor is None:
            assert math.isnan(rows[name]["norm"]), name
            continue
        entries = twin.values(tensor)
        if family == "gradient" and short == "embed":
            entries = [2.0] * 4 + [1.0] * 4  # what the sparse gradient holds, summed up
        # float32 holds a row; the difference of two halves is rounded once more
        near = {torch.bfloat16: 1e-2, torch.float16: 1e-2}.get(before[short].dtype, 1e-5) if family == "update" else 1e-5
        wanted = twin.row(entries)
        for column in wire.TENSOR_COLUMNS[:-1]:
            slack = near * wanted["mean_abs"]
            if column not in rows[name]:
                assert family != "gradient", column  # of weights and updates the norm is enough
                continue
            assert rows[name][column] == pytest.approx(wanted[column], rel=near, abs=slack + 1e-44), (name, column)


@pytest.mark.parametrize("family", ["gradient", "weight"])
def test_the_histograms(step, family):
    session, before, _, kept = step
    (found,) = session.histograms(family)
    for name, short in names_of(session).items():
        tensor = (kept if family == "gradient" else before)[short]
        entries = [] if tensor is None else twin.values(tensor)
        if family == "gradient" and short == "embed":
            entries = [2.0] * 4 + [1.0] * 4
        assert list(found[name]) == twin.histogram(entries), name
