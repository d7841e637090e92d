"""Values of all types on their way to the host (here without a device: the copies are there at once)."""

import math

import pytest
import torch
from gpuwatch_hooks.readback import Readback, contents


def test_values_of_every_type_come_back_in_their_places():
    tensors = {
        "double": torch.tensor([1.0, -2.0e300, math.inf], dtype=torch.float64),
        "single": torch.tensor(0.5),
        "bytes": torch.arange(7, dtype=torch.uint8),
        "half": torch.tensor([65504.0, 2.0**-24], dtype=torch.float16),
        "bfloat16": torch.tensor([[3.0e38], [1.0]], dtype=torch.bfloat16),
        "long": torch.tensor([2**62, -1]),
        "int": torch.arange(6, dtype=torch.int32).view(2, 3).t(),
        "flag": torch.tensor([True, False]),
        "every second": torch.arange(6.0)[::2],
        "none": torch.empty(0),
        "needs grad": torch.nn.Parameter(torch.tensor([4.0])),
    }
    back = Readback()
    places = {name: back.add(tensor) for name, tensor in tensors.items()}
    assert len(back) == len(tensors)
    back.launch()
    assert back.ready()
    assert back.values(places["bytes"]) == bytes(range(7))
    for name, place in places.items():
        if name != "bytes":
            assert back.values(place) == pytest.approx(tensors[name].reshape(-1).double().tolist(), rel=1e-2, nan_ok=True), name
    assert len(back._copies) == 1  # one for the device, whatever the types


def test_nothing_is_kept_alive_once_it_is_launched():
    import weakref

    tensor = torch.ones(1000)
    gone, back = weakref.ref(tensor), Readback()
    back.add(tensor)
    back.add(torch.ones(3))
    back.launch()
    del tensor
    assert gone() is None


def test_contents():
    assert contents(torch.empty(0, dtype=torch.uint8)) == b""
    assert contents(torch.tensor([1, 0, 255], dtype=torch.uint8)) == b"\x01\x00\xff"
