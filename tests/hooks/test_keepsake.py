"""What a keepsake holds and gives back: tensors of unusual kinds, buffers that are replaced, in the same memory again."""

import pytest
import torch
from gpuwatch_hooks.keepsake import Keepsake
from torch import nn


class Buffers(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("repeated", torch.zeros(3).unsqueeze(0).expand(4, 3))
        self.register_buffer("replaced", torch.zeros(2))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))


def test_buffers_that_repeat_in_memory_and_that_are_replaced():
    module = Buffers()
    kept = Keepsake([module], (), weights=False)
    module.repeated[0].add_(1)
    module.replaced = module.replaced + 1
    module.count += 1
    kept.restore()
    assert [tensor.sum().item() for tensor in module.buffers()] == [0, 0, 0]


def test_renewed_it_gives_back_what_stood_then_and_notices_other_buffers():
    module = Buffers()
    kept = Keepsake([module], (), weights=False)
    module.count += 5
    assert kept.renew()
    module.count += 1
    kept.restore()
    assert module.count.item() == 5
    module.replaced = torch.ones(2)
    assert not kept.renew()


@pytest.fixture
def mesh(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield torch.distributed.init_device_mesh("cpu", (1,))
    torch.distributed.destroy_process_group()


def test_sharded_parameters_and_their_states(mesh):
    from torch.distributed.tensor import Shard, distribute_tensor

    parameter = nn.Parameter(distribute_tensor(torch.ones(4, 2), mesh, [Shard(0)]))
    module = nn.Module()
    module.weight = parameter
    optimizer = torch.optim.AdamW([parameter], lr=0.1)

    def step():
        parameter.grad = torch.ones_like(parameter)
        optimizer.step()

    step()
    before = [parameter.full_tensor().clone(), optimizer.state[parameter]["exp_avg"].full_tensor().clone()]
    kept = Keepsake([module], [optimizer])
    step()
    kept.restore()
    after = [parameter.full_tensor(), optimizer.state[parameter]["exp_avg"].full_tensor()]
    assert all(map(torch.equal, before, after))
