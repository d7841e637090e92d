"""A one-dimensional GAN: the discriminator and the generator step in the same iteration, each with its own loss."""

import torch
from torch import nn

torch.set_num_threads(1)
torch.manual_seed(0)

STEPS = 20
generator = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 2))
discriminator = nn.Sequential(nn.Linear(2, 16), nn.LeakyReLU(0.2), nn.Linear(16, 1))
optimizer_d = torch.optim.Adam(discriminator.parameters(), lr=2e-3)
optimizer_g = torch.optim.Adam(generator.parameters(), lr=1e-3)
bce = nn.BCEWithLogitsLoss()


def squares(module):
    return sum(p.grad.double().square().sum().item() for p in module.parameters())


for _ in range(STEPS):
    real = torch.randn(32, 2) * 0.5 + 1.0
    fake = generator(torch.randn(32, 4))

    optimizer_d.zero_grad()
    loss_d = bce(discriminator(real), torch.ones(32, 1)) + bce(discriminator(fake.detach()), torch.zeros(32, 1))
    loss_d.backward()
    squares_d = squares(discriminator)
    optimizer_d.step()

    # The generator's backward also leaves gradients in the discriminator: they belong to nobody's step.
    optimizer_g.zero_grad()
    loss_g = bce(discriminator(fake), torch.ones(32, 1))
    loss_g.backward()
    squares_g = squares(generator)
    optimizer_g.step()

print(
    f"final loss={loss_d.item()!r} loss_generator={loss_g.item()!r} steps={STEPS} optimizers=2 "
    f"grad_norm={(squares_d + squares_g) ** 0.5!r}"
)
