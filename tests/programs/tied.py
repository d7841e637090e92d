"""A tiny language model whose output layer shares its weight with the embedding: one tensor, two names."""

import torch
from torch import nn

torch.set_num_threads(1)
torch.manual_seed(0)

STEPS = 15


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(32, 12)
        self.mix = nn.Linear(12, 12)
        self.head = nn.Linear(12, 32, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens):
        return self.head(torch.tanh(self.mix(self.embed(tokens))))


model = Tied()
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)

for _ in range(STEPS):
    tokens = torch.randint(32, (8, 10))
    loss = nn.functional.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
    optimizer.zero_grad()
    loss.backward()
    norm = sum(p.grad.double().square().sum().item() for p in model.parameters()) ** 0.5
    optimizer.step()

print(f"final loss={loss.item()!r} steps={STEPS} grad_norm={norm!r} tensors={len(list(model.parameters()))}")
