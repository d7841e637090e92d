"""Numbers that a first look gets wrong: overflow and underflow of the test itself, and tensors that are not plain."""

import math

import pytest
import torch
from torch import nn

from tests.hooks.recording import recording
from tests.hooks.traps.truth import CLOSE, norm


def one_step(parameters, gradients, **options):
    """Record one SGD step on given gradients; returns the session."""
    optimizer = torch.optim.SGD(parameters, lr=0.0)
    with recording(**options) as session:
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        optimizer.step()
    return session


def test_finite_values_whose_squares_overflow(model):
    """Trap 7: 3e38 is a number, and so is fp16's 60,000; both have a norm."""
    half = nn.Parameter(torch.zeros(100, dtype=torch.float16))
    large = nn.Parameter(torch.zeros(10))
    gradients = [torch.full((100,), 60000.0, dtype=torch.float16), torch.full((10,), 3e38)]
    part = one_step([half, large], gradients).parts()[0]
    assert part.values["grad_nonfinite_count"] == 0
    assert part.values["grad_norm"] == pytest.approx(math.hypot(3e38 * math.sqrt(10), 600000.0), rel=1e-6)


def test_small_values_have_not_vanished():
    """Trap 8: in float32 the squares of 1e-30 are zero."""
    tiny = nn.Parameter(torch.zeros(100))
    session = one_step([tiny], [torch.full((100,), 1e-30)])
    assert session.parts()[0].values["grad_norm"] == pytest.approx(1e-29, rel=1e-5)
    assert session.rows()[0]["group0.0[100]"]["zero_ratio"] == 0.0


def test_tied_weights(batches):
    """Trap 21: one tensor, one row, both names; counted once."""

    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(8, 4)
            self.head = nn.Linear(4, 8, bias=False)
            self.head.weight = self.embed.weight

    model = Tied()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with recording() as session:
        model.head(model.embed(torch.arange(8))).square().mean().backward()
        true_norm = norm(model.parameters())
        optimizer.step()
    assert session.tables["tensor"][1:] == (["embed.weight=head.weight"], [32])
    assert session.parts()[0].values["grad_norm"] == pytest.approx(true_norm, rel=CLOSE)


@pytest.mark.filterwarnings("ignore:optimizer contains a parameter group with duplicate parameters")
def test_a_tensor_that_a_group_lists_twice_counts_once():
    weight = nn.Parameter(torch.zeros(4))
    session = one_step([weight, weight], [torch.ones(4)] * 2)
    assert session.tables["tensor"][2] == [4]
    assert session.parts()[0].values["grad_norm"] == pytest.approx(2.0)


def test_sparse_gradients():
    """Trap 22: duplicates are summed before the norm is taken, and the gradient itself stays as it was."""
    embed = nn.Embedding(10, 3, sparse=True)
    optimizer = torch.optim.SparseAdam(embed.parameters(), lr=0.1)
    with recording() as session:
        embed(torch.tensor([1, 1, 4])).sum().backward()
        gradient = embed.weight.grad
        assert not gradient.is_coalesced()
        optimizer.step()
    part, row = session.parts()[0], session.rows()[0]["weight"]
    assert part.values["grad_norm"] == pytest.approx(math.sqrt(3 * 4 + 3), rel=1e-6)
    assert row["norm"] == pytest.approx(math.sqrt(3 * 4 + 3), rel=1e-6)
    assert row["absmax"] == 2.0
    assert embed.weight.grad is gradient
    assert "update_ratio" in part.values


def test_complex_parameters():
    """Trap 23: read as pairs of real numbers; the norm is the same."""
    weight = nn.Parameter(torch.zeros(3, dtype=torch.complex64))
    plain = nn.Parameter(torch.zeros(2))
    session = one_step([weight, plain], [torch.tensor([3 + 4j, 0j, 1j]), torch.tensor([1.0, math.nan])])
    part = session.parts()[0]
    assert part.values["grad_norm"] == pytest.approx(math.sqrt(25 + 1 + 1))
    assert part.values["grad_absmax"] == 4.0
    assert part.values["grad_nonfinite_count"] == 1
    rows = session.rows()[0]
    assert rows["group0.0[3]"]["zero_ratio"] == pytest.approx(0.5)
    assert sum(session.histograms()[0]["group0.0[3]"]) == 6


class Strange(torch.Tensor):
    """A subclass whose numbers are not to be trusted."""


def test_what_cannot_be_read_is_said_once_and_left_alone():
    """Trap 24: tensor subclasses; everything else is measured as ever."""
    strange = nn.Parameter(torch.zeros(4))
    plain = nn.Parameter(torch.zeros(4))
    optimizer = torch.optim.SGD([strange, plain], lr=0.0)
    with recording() as session:
        for _ in range(3):
            strange.grad = torch.full((4,), 7.0).as_subclass(Strange)
            plain.grad = torch.ones(4)
            optimizer.step()
    assert [part.values["grad_norm"] for part in session.parts()] == pytest.approx([2.0] * 3)
    notices = session.events("notice")
    assert [event.text for event in notices] == ["group0.0[4] is not measured: tensor subclass"]
    assert math.isnan(session.rows()[0]["group0.0[4]"]["norm"])
    assert session.rows()[0]["group0.1[4]"]["norm"] == 2.0


@pytest.mark.filterwarnings("ignore:.*quantize")
def test_other_kinds_of_numbers(model):
    """Integers, fp8 and quantised tensors have no gradient statistics; meta tensors have no numbers at all."""
    from gpuwatch_hooks.kernels.dense import readable

    assert readable(torch.ones(3, dtype=torch.int64)) == (None, "not floating point")
    assert readable(torch.ones(3).to(torch.float8_e4m3fn)) == (None, "not floating point")
    assert readable(torch.ones(3, device="meta")) == (None, "meta tensor")
    assert readable(torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)) == (None, "not floating point")
    csr, reason = readable(torch.eye(3).to_sparse_csr())
    assert (csr.tolist(), reason) == ([1.0, 1.0, 1.0], None)
    assert readable(model[0].weight)[0].requires_grad is False


def test_double_precision():
    weight = nn.Parameter(torch.zeros(3, dtype=torch.float64))
    session = one_step([weight], [torch.tensor([3e-200, 4e-200, 0.0], dtype=torch.float64)])
    assert session.parts()[0].values["grad_norm"] == pytest.approx(5e-200)
    assert session.rows()[0]["group0.0[3]"]["norm"] == 0.0  # a row is float32


def test_no_gradient_is_not_a_zero_gradient():
    """Trap 25: set_to_none and unused parameters."""
    used, zero, unused = (nn.Parameter(torch.zeros(4)) for _ in range(3))
    session = one_step([used, zero, unused], [torch.ones(4), torch.zeros(4), None])
    assert session.parts()[0].values["tensors_without_gradient"] == 1
    row = session.rows()[0]
    assert row["group0.1[4]"]["norm"] == 0.0
    assert math.isnan(row["group0.2[4]"]["norm"])


def test_only_norms_are_measured_between_samples():
    """`every`: what was not measured is absent, not zero."""
    used, unused = nn.Parameter(torch.zeros(4)), nn.Parameter(torch.zeros(4))
    optimizer = torch.optim.SGD([used, unused], lr=0.0)
    with recording(every=3) as session:
        for _ in range(6):
            used.grad = torch.ones(4)
            optimizer.step()
    assert len(session.rows()) == len(session.histograms()) == 2
    parts = session.parts()
    assert ["grad_absmax" in part.values for part in parts] == [True, False, False, True, False, False]
    assert all(part.values["grad_norm"] == 2.0 for part in parts)


def test_no_gradients_at_all():
    session = one_step([nn.Parameter(torch.zeros(4))], [None])
    values = session.parts()[0].values
    assert values["tensors_without_gradient"] == 1
    assert "grad_norm" not in values
    assert "loss" not in values


def test_empty_tensors():
    session = one_step([nn.Parameter(torch.zeros(0)), nn.Parameter(torch.zeros(3))], [torch.zeros(0), torch.ones(3)])
    assert session.parts()[0].values["grad_norm"] == pytest.approx(math.sqrt(3))
