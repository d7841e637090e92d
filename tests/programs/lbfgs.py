"""LBFGS evaluates the loss several times inside one step: the gradients exist only while `step` runs."""

import torch
from torch import nn

torch.set_num_threads(1)
torch.manual_seed(0)

STEPS = 3
model = nn.Linear(5, 1)
optimizer = torch.optim.LBFGS(model.parameters(), lr=0.5, max_iter=4, history_size=5)
inputs = torch.randn(64, 5)
targets = inputs @ torch.arange(1.0, 6.0).unsqueeze(1) + 0.1 * torch.randn(64, 1)
calls = 0


def closure():
    global calls
    calls += 1
    optimizer.zero_grad()
    loss = nn.functional.mse_loss(model(inputs), targets)
    loss.backward()
    closure_losses.append(loss.item())
    return loss


for _ in range(STEPS):
    closure_losses, calls = [], 0
    optimizer.step(closure)

# the loss of the weights that the step began with, as LBFGS.step returns it: later evaluations are at trial weights
print(f"final loss={closure_losses[0]!r} last_loss={closure_losses[-1]!r} steps={STEPS} closure_calls={calls}")
