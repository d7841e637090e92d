"""DataLoader workers started by spawn: each is a fresh interpreter that imports torch and this file, and trains nothing."""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

STEPS = 10


def main():
    torch.set_num_threads(1)
    torch.manual_seed(0)
    data = TensorDataset(torch.randn(STEPS * 8, 4), torch.randn(STEPS * 8, 1))
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for inputs, targets in DataLoader(data, batch_size=8, num_workers=1, multiprocessing_context="spawn"):
        loss = nn.functional.mse_loss(model(inputs), targets)
        optimizer.zero_grad()
        loss.backward()
        norm = sum(p.grad.double().square().sum().item() for p in model.parameters()) ** 0.5
        optimizer.step()
    print(f"final loss={loss.item()!r} steps={STEPS} grad_norm={norm!r}")


if __name__ == "__main__":
    main()
