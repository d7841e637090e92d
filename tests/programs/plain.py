"""A plain classification loop whose DataLoader has two forked workers."""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

torch.set_num_threads(1)
torch.manual_seed(0)

STEPS = 24
data = torch.randn(STEPS * 16, 8)
labels = (data[:, :3].sum(1) > 0).long()
loader = DataLoader(TensorDataset(data, labels), batch_size=16, num_workers=2)

model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.05)
criterion = nn.CrossEntropyLoss()

losses, steps, norm = [], 0, 0.0
for inputs, targets in loader:
    optimizer.zero_grad()
    loss = criterion(model(inputs), targets)
    loss.backward()
    norm = sum(p.grad.double().square().sum().item() for p in model.parameters()) ** 0.5
    optimizer.step()
    losses.append(loss.item())
    steps += 1

weights = sum(p.detach().double().square().sum().item() for p in model.parameters()) ** 0.5
print(f"final loss={losses[-1]!r} first_loss={losses[0]!r} steps={steps} grad_norm={norm!r} weight_norm_after={weights!r}")
