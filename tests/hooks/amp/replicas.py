"""Two replicas that train in float32 under torchrun; with "one_fails" rank 1 knows float32 only. Prints whether they agree."""

import sys

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

dist.init_process_group("gloo")
torch.manual_seed(0)
torch.set_num_threads(1)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 1))

    def forward(self, x):
        y = self.inner(x)
        if sys.argv[1] == "one_fails" and dist.get_rank() == 1 and y.dtype != torch.float32:
            raise TypeError("this kernel knows float32 only")
        return y


model = DistributedDataParallel(Net())
optimizer = torch.optim.SGD(model.parameters(), 0.01)
torch.manual_seed(dist.get_rank())
for _ in range(40):
    optimizer.zero_grad()
    model(torch.randn(8, 6)).square().mean().backward()
    optimizer.step()
mine = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
both = [torch.zeros_like(mine) for _ in range(2)]
dist.all_gather(both, mine)
if dist.get_rank() == 0:
    print("the same" if torch.equal(*both) else "apart")
dist.destroy_process_group()
