"""bfloat16 autocast around the forward pass; gradients and weights stay float32, and there is no loss scaler."""

import torch
from torch import nn

torch.set_num_threads(1)
torch.manual_seed(0)

STEPS = 16
model = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 4))
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
inputs, targets = torch.randn(STEPS, 32, 16), torch.randint(4, (STEPS, 32))

for step in range(STEPS):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(inputs[step])
        loss = nn.functional.cross_entropy(logits, targets[step])
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    norm = sum(p.grad.double().square().sum().item() for p in model.parameters()) ** 0.5
    optimizer.step()

assert logits.dtype is torch.bfloat16
print(f"final loss={loss.item()!r} steps={STEPS} grad_norm={norm!r}")
