"""A sparse embedding: its gradient is an uncoalesced sparse tensor, whose values must be summed before a norm is taken."""

import torch
from torch import nn

torch.set_num_threads(1)
torch.manual_seed(0)

STEPS = 12
embed = nn.EmbeddingBag(50, 8, sparse=True, mode="sum")
head = nn.Linear(8, 1)
sparse_optimizer = torch.optim.SparseAdam(embed.parameters(), lr=1e-2)
dense_optimizer = torch.optim.Adam(head.parameters(), lr=1e-2)

for _ in range(STEPS):
    tokens = torch.randint(50, (16, 6))
    tokens[:, 1] = tokens[:, 0]  # the same row twice in a bag: an uncoalesced gradient has it twice too
    loss = head(embed(tokens)).square().mean()
    sparse_optimizer.zero_grad()
    dense_optimizer.zero_grad()
    loss.backward()
    squares = embed.weight.grad.to_dense().double().square().sum().item()
    squares += sum(p.grad.double().square().sum().item() for p in head.parameters())
    sparse_optimizer.step()
    dense_optimizer.step()

print(f"final loss={loss.item()!r} steps={STEPS} optimizers=2 grad_norm={squares**0.5!r}")
