"""Half A, healthy: the kinds of training that a rule must leave alone."""

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, mse_loss
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset

from tests.zoo.data import batches, clusters, pictures, sums
from tests.zoo.models import Recurrent, Residual, Transformer, cnn, mlp
from tests.zoo.program import healthy


@healthy()
def mlp_sgd():
    model = mlp(16, 64, 64, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)
    loader = DataLoader(TensorDataset(*clusters()), batch_size=32, shuffle=True)
    for _ in range(20):
        for inputs, labels in loader:
            optimizer.zero_grad()
            cross_entropy(model(inputs), labels).backward()
            optimizer.step()


@healthy()
def cnn_cosine_restarts():
    model = cnn()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, 100)
    for images, labels in batches(*pictures(), steps=450):
        loss = cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


@healthy()
def resnet_with_evaluation():
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), Residual(16), Residual(16), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4)
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 120, 0.1)
    held_out = pictures(64, seed=5)
    for step, (images, labels) in enumerate(batches(*pictures(512), steps=300)):
        optimizer.zero_grad()
        cross_entropy(model(images), labels).backward()
        optimizer.step()
        schedule.step()
        if step % 40 == 39:
            model.eval()
            with torch.no_grad():
                cross_entropy(model(held_out[0]), held_out[1]).item()
            model.train()


@healthy()
def transformer_warmup():
    model = Transformer()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 100))
    for tokens, targets in batches(*sums(2048), steps=350):
        loss = cross_entropy(model(tokens).flatten(0, 1), targets.flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()


@healthy()
def lstm_clipped():
    model = Recurrent(nn.LSTM)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    for tokens, targets in batches(*sums(1024), steps=400):
        optimizer.zero_grad()
        cross_entropy(model(tokens).flatten(0, 1), targets.flatten()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.25)
        optimizer.step()


@healthy()
def gan_on_a_ring():
    generator, critic = mlp(8, 32, 32, 2), mlp(2, 32, 32, 1, activation=lambda: nn.LeakyReLU(0.2))
    optimizer_g = torch.optim.Adam(generator.parameters(), lr=1e-3, betas=(0.5, 0.9))
    optimizer_d = torch.optim.Adam(critic.parameters(), lr=1e-3, betas=(0.5, 0.9))
    one, nought = torch.ones(64, 1), torch.zeros(64, 1)
    for _ in range(500):
        angle = 6.28 * torch.rand(64, 1)
        real = torch.cat([angle.cos(), angle.sin()], 1) + 0.05 * torch.randn(64, 2)
        fake = generator(torch.randn(64, 8))
        optimizer_d.zero_grad()
        score = binary_cross_entropy_with_logits
        (score(critic(real), one) + score(critic(fake.detach()), nought)).backward()
        optimizer_d.step()
        optimizer_g.zero_grad()
        score(critic(fake), one).backward()
        optimizer_g.step()


class Vae(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = mlp(64, 64, 16), mlp(8, 64, 64)

    def forward(self, x):
        mean, log_variance = self.encoder(x).chunk(2, 1)
        code = mean + torch.randn_like(mean) * (0.5 * log_variance).exp()
        divergence = -0.5 * (1 + log_variance - mean**2 - log_variance.exp()).sum(1).mean()
        return self.decoder(code), divergence


@healthy()
def vae_annealed():
    model = Vae()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    images, _ = pictures(512)
    for step, (batch,) in enumerate(batches(images.flatten(1), steps=400)):
        rebuilt, divergence = model(batch)
        loss = mse_loss(rebuilt, batch, reduction="sum") / len(batch) + min(1.0, step / 200) * divergence
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@healthy()
def reinforce_noisy_returns():
    policy = mlp(4, 32, 3)
    optimizer = torch.optim.Adam(policy.parameters(), lr=3e-3)
    best = torch.randn(4, 3)
    baseline = 0.0
    for _ in range(500):
        states = torch.randn(32, 4)
        choice = torch.distributions.Categorical(logits=policy(states))
        actions = choice.sample()
        returns = (states @ best).gather(1, actions[:, None])[:, 0] + 5.0 * torch.randn(32)
        loss = -(choice.log_prob(actions) * (returns - baseline)).mean() - 0.01 * choice.entropy().mean()
        baseline = 0.95 * baseline + 0.05 * returns.mean().item()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


class LowRank(nn.Module):
    """A frozen linear layer with a trainable update of rank 4, which starts at nought."""

    def __init__(self, frozen):
        super().__init__()
        self.frozen = frozen.requires_grad_(requires_grad=False)
        self.down = nn.Parameter(0.1 * torch.randn(4, frozen.in_features))
        self.up = nn.Parameter(torch.zeros(frozen.out_features, 4))

    def forward(self, x):
        return self.frozen(x) + x @ self.down.T @ self.up.T


@healthy()
def lora_fine_tuning():
    model = nn.Sequential(*[layer for _ in range(3) for layer in (LowRank(nn.Linear(16, 16)), nn.GELU())], nn.Linear(16, 4))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-3, weight_decay=0.01)
    for inputs, labels in batches(*clusters(), steps=300):
        optimizer.zero_grad()
        cross_entropy(model(inputs), labels).backward()
        optimizer.step()


@healthy()
def bf16_autocast():
    model = mlp(16, 64, 64, 4)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for inputs, labels in batches(*clusters(), steps=300):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = cross_entropy(model(inputs), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@healthy()
def fp16_scaler_probing():
    """The scale begins too high, and its growth is probed often enough that some probes overflow."""
    model = mlp(16, 64, 64, 4)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**24, growth_interval=100)
    for inputs, labels in batches(*clusters(), steps=450):
        with torch.autocast("cpu", dtype=torch.float16):
            loss = cross_entropy(model(inputs), labels)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()


@healthy(ranks=2)
def ddp_two_ranks():
    dist.init_process_group("gloo")
    model = DistributedDataParallel(cnn())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for images, labels in batches(*pictures(), steps=200, seed=dist.get_rank()):
        optimizer.zero_grad()
        cross_entropy(model(images), labels).backward()
        optimizer.step()
    dist.destroy_process_group()


@healthy()
def accumulation_of_four():
    model = cnn(norm=lambda width: nn.GroupNorm(4, width))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for step, (images, labels) in enumerate(batches(*pictures(), size=8, steps=1000)):
        (cross_entropy(model(images), labels) / 4).backward()
        if step % 4 == 3:
            optimizer.step()
            optimizer.zero_grad()


@healthy()
def converged_adam():
    """A regression learned to the last digits: there Adam throws the loss up by orders of magnitude, and it returns."""
    model = mlp(4, 32, 32, 1, activation=nn.Tanh)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    inputs = torch.randn(64, 4)
    targets = inputs @ torch.tensor([[0.3], [-0.2], [0.1], [0.05]])
    for _ in range(3000):
        loss = mse_loss(model(inputs), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@healthy()
def five_steps():
    model = cnn()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for images, labels in batches(*pictures(), steps=5):
        optimizer.zero_grad()
        cross_entropy(model(images), labels).backward()
        optimizer.step()


@healthy()
def label_noise():
    model = mlp(16, 32, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.003, momentum=0.9)
    inputs, labels = clusters(2048)
    flipped = torch.rand(len(labels)) < 0.4
    labels[flipped] = torch.randint(4, (int(flipped.sum()),))
    for some_inputs, some_labels in batches(inputs, labels, size=8, steps=800):
        optimizer.zero_grad()
        cross_entropy(model(some_inputs), some_labels).backward()
        optimizer.step()


@healthy()
def sparse_embedding():
    """A vocabulary of which each batch sees a few rows."""
    table, head = nn.EmbeddingBag(5000, 16, sparse=True), nn.Linear(16, 4)
    model = nn.Sequential(table, head)
    sparse, dense = torch.optim.SparseAdam(table.parameters(), lr=1e-2), torch.optim.Adam(head.parameters(), lr=1e-2)
    topics = torch.randint(4, (5000,))
    for _ in range(250):
        words = torch.randint(5000, (32, 6))
        labels = topics[words].mode(1).values
        sparse.zero_grad()
        dense.zero_grad()
        cross_entropy(model(words), labels).backward()
        sparse.step()
        dense.step()
