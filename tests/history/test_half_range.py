"""What float16 does to a run's gradients, against torch's own rounding of the very tensors."""

import math

import pytest
import torch
from gpuwatch_hooks import wire

from gpuwatch.history import half_range, past
from gpuwatch.state.records import Names
from gpuwatch.state.store import State
from tests.state.recorded import hello, identity, slots, step_payload

EXPONENTS = {"wide.weight": (-46, -6), "narrow.weight": (-10, -2)}


def gradients(zero_share):
    torch.manual_seed(0)
    made = []
    for low, high in EXPONENTS.values():
        tensor = torch.exp2(torch.empty(4000, dtype=torch.float64).uniform_(low, high))
        tensor[torch.rand(4000) < zero_share] = 0.0
        made.append(tensor)
    return made


def histogram(tensors):
    rows = torch.zeros(len(tensors), 64, dtype=torch.int64)
    for row, tensor in enumerate(tensors):
        exponent = torch.frexp(tensor).exponent - 1 + 48
        exponent[tensor == 0] = 0
        rows[row] = torch.bincount(exponent.clamp(0, 63), minlength=64)
    head = wire.HISTOGRAMS_HEAD.pack(1, 0, 0, 1, 0, len(tensors), wire.HISTOGRAM_FIRST_EXPONENT)
    return head + rows.to(torch.int32).numpy().tobytes()


def rows(tensors):
    cells = torch.zeros(len(tensors), 8)
    cells[:, wire.TENSOR_COLUMNS.index("zero_ratio")] = torch.tensor([(t == 0).double().mean() for t in tensors])
    return wire.TENSORS_HEAD.pack(1, 0, 0, 1, 0, len(tensors), 0xFF) + cells.numpy().tobytes()


@pytest.fixture
def found(tmp_path, request):
    tensors = gradients(getattr(request, "param", 0.3))
    state = State(str(tmp_path / "runs"))
    run = state.open_run(hello(), identity())
    payloads = [(wire.KIND_TENSORS, rows(tensors)), (wire.KIND_HISTOGRAMS, histogram(tensors))]
    state.ring(run, slots([*payloads, (wire.KIND_STEP, step_payload(1, {"loss": 1.0}))]))
    state.control(run, 1, Names("tensor", 1, 0, tuple(EXPONENTS), (4000, 4000)))
    state.close()
    return half_range.half_range(past.read(tmp_path / "runs" / "digits")), tensors


def lost_twin(tensors, power):
    flat = torch.cat(tensors)
    flat = flat[flat != 0]
    return ((flat * 2.0**power).half() == 0).double().mean().item()


@pytest.mark.parametrize("power", half_range.POWERS)
def test_the_share_that_is_lost_is_torchs_own(found, power):
    half, tensors = found
    assert half.lost[power] == pytest.approx(lost_twin(tensors, power), abs=1e-12)


@pytest.mark.parametrize("power", [0, 8, 16])
def test_layers_are_ranked_by_what_they_lose(found, power):
    half, tensors = found
    first, *others = half.first_to_underflow(power)
    assert first.name == "wide.weight"
    assert first.lost_ratio(power) == pytest.approx(lost_twin(tensors[:1], power), abs=1e-12)
    assert all(layer.lost_ratio(power) < first.lost_ratio(power) for layer in others)


def test_the_recommended_scale_overflows_nothing_and_leaves_its_headroom(found):
    half, tensors = found
    power = half.recommended_power
    largest = max(tensor.max().item() for tensor in tensors)
    assert math.isfinite(torch.tensor(largest * 2.0 ** (power + half_range.HEADROOM_POWERS)).half().item())
    assert not math.isfinite(torch.tensor(largest * 2.0 ** (power + half_range.HEADROOM_POWERS + 2)).half().item())
    assert not half.fits, "the wide layer has more than float16's range"


def test_a_run_without_histograms():
    assert half_range.half_range(past.Past()) is None


@pytest.mark.parametrize(("scale", "power"), [(65536.0, 16), (1.0, 0), (0.5, 0), (3.0, 1), (2.0**40, 24)])
def test_the_power_of_a_scale(scale, power):
    assert half_range.of_scale(scale) == power
