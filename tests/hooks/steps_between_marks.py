"""A CPU training loop for strace: two system calls that nothing else makes stand before and behind 1,000 steps."""

import os
import sys

import torch

if "--hooks" in sys.argv:
    from gpuwatch_hooks import bootstrap

    bootstrap.start()

torch.set_num_threads(1)
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.ReLU(), torch.nn.Linear(32, 4))
adam = torch.optim.AdamW(model.parameters(), lr=1e-3)
inputs, targets = torch.randn(8, 16), torch.randint(0, 4, (8,))


def step():
    adam.zero_grad()
    loss = torch.nn.functional.cross_entropy(model(inputs), targets)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    adam.step()
    return loss


for _ in range(300):
    step()
print("warm", flush=True)
sys.stdin.readline()
os.path.exists("/gpuwatch-begin")
for _ in range(1000):
    step()
os.path.exists("/gpuwatch-end")
print(step().item())
