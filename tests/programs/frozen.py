"""Fine-tuning: the backbone is frozen and in eval mode, only the head has gradients; the optimizer holds all parameters."""

import torch
from torch import nn

torch.set_num_threads(1)
torch.manual_seed(0)

STEPS = 15


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 16))
        self.head = nn.Linear(16, 2)

    def forward(self, inputs):
        return self.head(self.backbone(inputs))


model = Classifier()
model.backbone.requires_grad_(False).eval()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

for _ in range(STEPS):
    inputs = torch.randn(16, 8)
    loss = nn.functional.cross_entropy(model(inputs), (inputs[:, 0] > 0).long())
    optimizer.zero_grad()
    loss.backward()
    norm = sum(p.grad.double().square().sum().item() for p in model.head.parameters()) ** 0.5
    optimizer.step()

print(f"final loss={loss.item()!r} steps={STEPS} grad_norm={norm!r} without_gradient=0")
