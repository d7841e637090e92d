"""How far weights moved, by the fused kernel (both sources, without a device), against float64."""

import math
import shutil

import pytest
import torch
from gpuwatch_hooks.kernels import cuda_updates, followed
from gpuwatch_hooks.readback import contents

from tests.hooks.kernels import emulated, interpreted
from tests.hooks.kernels.test_statistics import normal

CUDA = pytest.param(emulated.fused, marks=pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not here"), id="cuda")
TRITON = pytest.param(interpreted.fused, marks=interpreted.needed, id="triton")
KERNELS = pytest.mark.parametrize("make", [CUDA, TRITON])
PAIRS = {
    "ordinary": (normal(5000), normal(5000, scale=1e-3)),
    "several chunks": (normal(20_001), normal(20_001, scale=1e-2)),
    "one": (normal(1), normal(1)),
    "empty": (torch.zeros(0), torch.zeros(0)),
    "unmoved": (normal(300), torch.zeros(300)),
    "tiny": (normal(5000, scale=1e-30), normal(5000, scale=1e-33)),
    "huge": (normal(5000, scale=1e30), normal(5000, scale=1e28)),
    "denormal": (torch.full((200,), 1e-40), torch.full((200,), 1e-41)),
    "to the other end": (torch.full((10,), 3e38), torch.full((10,), -3e38)),
    "bf16": (normal(9000, dtype=torch.bfloat16), normal(9000, scale=0.1, dtype=torch.bfloat16)),
    "fp16": (normal(9000, dtype=torch.float16), normal(9000, scale=0.1, dtype=torch.float16)),
    "minus zero": (torch.full((64,), -0.0), torch.zeros(64)),
}


def moved(kernel, tensors, changes, strides=None):
    """(update norms, weight norms, counts) after `changes` were added in place."""
    strides = strides or [1] * len(tensors)
    kept = kernel.followed.keep(tensors, strides)
    for tensor, change in zip(tensors, changes, strict=True):
        tensor.add_(change)
    return [list(column) for column in followed.decode(contents(kernel.followed.compare(kept, tensors)))]


def wanted(before, after, stride=1):
    old, new = (tensor.reshape(-1)[::stride].double() for tensor in (before, after))
    return (new - old).norm().item(), old.norm().item()


@KERNELS
def test_norms_of_every_pair(make):
    before = [weights.clone() for weights, _ in PAIRS.values()]
    tensors = [weights.clone() for weights, _ in PAIRS.values()]
    updates, weights, bad = moved(make(), tensors, [change for _, change in PAIRS.values()])
    for place, name in enumerate(PAIRS):
        found, want = (updates[place], weights[place]), wanted(before[place], tensors[place])
        assert found == pytest.approx(want, rel=1e-9, abs=0.0), name
    assert bad == [0.0] * len(PAIRS)


@KERNELS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_kth_entry(make, dtype):
    tensors = [normal(size, dtype=dtype) for size in (1, 30, 4096, 31 * 4096, 31 * 4096 + 1, 31 * 4096 + 5)]
    strides = [1, 1, 3, 31, 31, 5]
    before = [tensor.clone() for tensor in tensors]
    updates, weights, _ = moved(make(), tensors, [normal(t.numel(), scale=0.1, dtype=dtype) for t in tensors], strides)
    for old, new, stride, *found in zip(before, tensors, strides, updates, weights, strict=True):
        assert tuple(found) == pytest.approx(wanted(old, new, stride), rel=1e-9)


@KERNELS
def test_what_is_not_finite_is_counted_and_left_out(make):
    tensor, change = torch.ones(100), torch.ones(100)
    tensor[3], change[5], change[7] = math.nan, math.inf, math.nan
    updates, weights, bad = moved(make(), [tensor], [change])
    assert bad == [3.0]
    assert updates == pytest.approx([math.sqrt(97)])
    assert weights == pytest.approx([math.sqrt(99)])


@KERNELS
def test_orders_of_memory_and_misaligned_views(make):
    memory = normal(1000)
    tensors = [memory[1:400], normal(4, 6, 5, 7).to(memory_format=torch.channels_last), normal(30, 50).t()]
    before = [tensor.clone() for tensor in tensors]
    updates, weights, _ = moved(make(), tensors, [0.5, 0.25, 0.125])
    for old, new, *found in zip(before, tensors, updates, weights, strict=True):
        assert tuple(found) == pytest.approx(wanted(old, new), rel=1e-9)


@pytest.fixture
def kernel():
    if shutil.which("g++") is None:
        pytest.skip("g++ is not here")
    return emulated.fused()


def test_one_launch_before_and_two_after(kernel):
    tensors = [normal(700), normal(3)]
    for turn in range(3):
        kernel._device.log.clear()
        moved(kernel, tensors, [1.0, 1.0])
        launches = [entry for entry in kernel._device.log if entry[0].startswith("gpuwatch")]
        assert [name for name, _ in launches] == [cuda_updates.KEEP, cuda_updates.COMPARE, cuda_updates.CHANGES]
        assert [name for name, _ in kernel._device.log].count("upload") == (2 if turn == 0 else 0)


def test_weights_that_the_optimizer_has_replaced_are_followed(kernel):
    """`p.data = ...` leaves the parameter and moves its memory: what counts is where the weights are now."""
    parameter = torch.nn.Parameter(torch.ones(50))
    kept = kernel.followed.keep([parameter], [1])
    parameter.data = torch.full((50,), 3.0)
    updates, _, _ = followed.decode(contents(kernel.followed.compare(kept, [parameter])))
    assert updates[0] == pytest.approx(2 * math.sqrt(50))


def test_what_cannot_be_compared_is_not(kernel):
    tensors = [normal(10)]
    kept = kernel.followed.keep(tensors, [1])
    assert kernel.followed.compare(kept, [normal(11)]) is None
    assert kernel.followed.compare(kept, [normal(10).double()]) is None
    assert kernel.followed.compare(kept, [normal(10, 2)[:, 0]]) is None
    kernel._device.current = 7
    assert kernel.followed.compare(kept, tensors) is None
    assert kernel.followed.keep([normal(10), normal(10).double()], [1, 1]) is None
    assert kernel.followed.keep([], []) is None


def test_layouts_are_bounded(kernel):
    for size in range(1, 60):
        moved(kernel, [torch.ones(size)], [1.0])
    assert len(kernel.followed._plans) <= 16


def test_the_order_of_threads_and_blocks_does_not_matter(kernel):
    tensors = [normal(20_001), normal(30, dtype=torch.bfloat16)]
    found = []
    for one in (kernel, emulated.fused(backwards=True)):
        copies = [tensor.clone() for tensor in tensors]
        found.append(moved(one, copies, [0.1, 0.1]))
    assert found[0] == found[1]
