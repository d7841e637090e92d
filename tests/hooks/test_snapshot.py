"""A snapshot is what the tensor was, whatever training does to it afterwards."""

import json
import subprocess
import sys

import pytest
import torch
from gpuwatch_hooks import snapshot


def test_later_changes_do_not_show():
    tensor = torch.arange(6.0).reshape(2, 3)
    taken = snapshot.take(tensor)
    tensor.zero_()
    assert taken.size_bytes == 24
    assert torch.equal(taken.read(), torch.arange(6.0).reshape(2, 3))


@pytest.mark.filterwarnings("ignore::UserWarning")  # torch's about sparse and quantised tensors
@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: torch.ones(2, 2, requires_grad=True) * 3, torch.full((2, 2), 3.0)),
        (lambda: torch.arange(6.0).reshape(2, 3).t(), torch.arange(6.0).reshape(2, 3).t()),
        (lambda: torch.sparse_coo_tensor([[1, 1, 3]], [1.0, 2.0, 4.0], (5,)), torch.tensor([3.0, 4.0])),
        (lambda: torch.eye(3).to_sparse_csr(), torch.ones(3)),
        (lambda: torch.tensor([3 + 4j]), torch.tensor([5.0])),
        (lambda: torch.quantize_per_tensor(torch.tensor([0.5, 1.0]), 0.5, 0, torch.qint8), torch.tensor([0.5, 1.0])),
    ],
    ids=["requires_grad", "transposed", "sparse_coo", "sparse_csr", "complex", "quantised"],
)
def test_any_tensor_becomes_a_plain_one(make, expected):
    read = snapshot.take(make()).read()
    assert torch.equal(read, expected)
    assert not read.requires_grad
    assert read.layout is torch.strided


THREADS = """
import json, os, sys, threading, torch
from gpuwatch_hooks import bins, images
torch.set_num_threads(4)
big = torch.rand(4, 1, 300, 300)
def count(): return len(os.listdir("/proc/self/task"))
def ours():
    bins.rows(bins.measure(big)); images.to_uint8(big, True); images.grid(images.fit_maps(big[:, 0]))
def torchs(): torch.sigmoid(big)
def inside(work, seen): work(); seen.append(count())
seen = [count()]
for work in (ours, torchs):
    thread = threading.Thread(target=inside, args=(work, seen)); thread.start(); thread.join()
print(json.dumps(seen))
"""


def test_work_on_the_control_thread_starts_no_second_pool_of_threads():
    run = subprocess.run([sys.executable, "-c", THREADS], capture_output=True, text=True, timeout=60, check=True)
    before, with_ours, with_torchs = json.loads(run.stdout)
    assert with_ours == before + 1  # the second thread itself
    assert with_torchs > before + 1  # the twin: one ordinary torch operation of that size does start a pool
