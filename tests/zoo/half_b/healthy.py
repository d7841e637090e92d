"""Half B, healthy: other models, other loops."""

import copy
import math
import time

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.functional import cross_entropy, kl_div, log_softmax, mse_loss, normalize
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import SWALR, AveragedModel, update_bn
from torch.utils.data import DataLoader, TensorDataset

from tests.zoo.data import batches, clusters, pictures, sums, waves
from tests.zoo.models import Recurrent, Transformer, cnn, mlp
from tests.zoo.program import healthy


@healthy()
def denoising_diffusion():
    model = mlp(3, 64, 64, 2, activation=nn.SiLU)
    average = copy.deepcopy(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(600):
        angle = 6.28 * torch.rand(64, 1)
        clean = torch.cat([angle.cos(), angle.sin()], 1)
        time_, noise = torch.rand(64, 1), torch.randn(64, 2)
        level = (0.5 * math.pi * time_).sin()
        noisy = (1 - level**2).sqrt() * clean + level * noise
        loss = mse_loss(model(torch.cat([noisy, time_], 1)), noise)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for kept, new in zip(average.parameters(), model.parameters(), strict=True):
                kept.lerp_(new, 0.01)


@healthy()
def gru_with_restarts():
    model = Recurrent(nn.GRU, vocabulary=0, outputs=1)
    optimizer = torch.optim.RMSprop(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, 150)
    for series, target in batches(*waves(), steps=500):
        optimizer.zero_grad()
        mse_loss(model(series)[:, -1], target).backward()
        optimizer.step()
        schedule.step()


@healthy()
def thawed_backbone():
    backbone, head = cnn(16), nn.Linear(16, 4)
    model = nn.Sequential(backbone, head)
    backbone.requires_grad_(requires_grad=False)
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-3)
    for step, (images, labels) in enumerate(batches(*pictures(), steps=450)):
        if step == 200:
            backbone.requires_grad_(requires_grad=True)
            optimizer.add_param_group({"params": list(backbone.parameters()), "lr": 2e-4})
        optimizer.zero_grad()
        cross_entropy(model(images), labels).backward()
        optimizer.step()


@healthy()
def lbfgs_closure():
    model = mlp(4, 16, 1, activation=nn.Tanh)
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.5, max_iter=5)
    inputs = torch.randn(128, 4)
    targets = (inputs[:, :1] * inputs[:, 1:2]).sin() + 0.1 * torch.randn(128, 1)

    def closure():
        optimizer.zero_grad()
        loss = mse_loss(model(inputs), targets)
        loss.backward()
        return loss

    for _ in range(120):
        optimizer.step(closure)


@healthy()
def stochastic_weight_averaging():
    model = cnn()
    averaged = AveragedModel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)
    schedule = SWALR(optimizer, swa_lr=0.02, anneal_epochs=5)
    loader = DataLoader(TensorDataset(*pictures()), batch_size=32, shuffle=True)
    for epoch in range(40):
        for images, labels in loader:
            optimizer.zero_grad()
            cross_entropy(model(images), labels).backward()
            optimizer.step()
        if epoch >= 25:
            averaged.update_parameters(model)
            schedule.step()
    update_bn(loader, averaged)


@healthy()
def checkpoint_pauses(folder="/dev/null"):
    model = mlp(16, 64, 64, 4)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for step, (inputs, labels) in enumerate(batches(*clusters(), steps=400)):
        optimizer.zero_grad()
        cross_entropy(model(inputs), labels).backward()
        optimizer.step()
        if step % 80 == 79:
            torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, folder)
            time.sleep(0.4)


@healthy()
def slow_first_step():
    """A compiler, say, or a cuDNN search."""
    model = cnn()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for step, (images, labels) in enumerate(batches(*pictures(), steps=250)):
        if step == 0:
            time.sleep(2.0)
        optimizer.zero_grad()
        cross_entropy(model(images), labels).backward()
        optimizer.step()


class Patches(nn.Module):
    """A vision transformer over 2 x 2 patches."""

    def __init__(self):
        super().__init__()
        self.patch = nn.Conv2d(1, 32, 2, stride=2)
        self.position = nn.Parameter(0.02 * torch.randn(16, 32))
        self.blocks = nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 4, 64, 0.1, batch_first=True, norm_first=True), 2)
        self.head = nn.Linear(32, 4)

    def forward(self, images):
        tokens = self.patch(images).flatten(2).mT + self.position
        return self.head(self.blocks(tokens).mean(1))


@healthy()
def vit_one_cycle():
    model = Patches()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=350)
    for images, labels in batches(*pictures(1024), steps=350):
        optimizer.zero_grad()
        cross_entropy(model(images), labels, label_smoothing=0.1).backward()
        optimizer.step()
        schedule.step()


@healthy()
def actor_critic():
    """Value losses in the hundreds at first, policy losses around nought: the sum is of any sign."""
    actor, critic = mlp(4, 32, 3), mlp(4, 32, 1)
    optimizer = torch.optim.Adam([*actor.parameters(), *critic.parameters()], lr=3e-3)
    best = torch.randn(4, 3)
    for _ in range(500):
        states = torch.randn(64, 4)
        choice = torch.distributions.Categorical(logits=actor(states))
        actions = choice.sample()
        returns = 10.0 + 3.0 * (states @ best).gather(1, actions[:, None]) + 4.0 * torch.randn(64, 1)
        advantage = returns - critic(states)
        scaled = (advantage - advantage.mean()).detach() / (advantage.std().detach() + 1e-8)
        loss = -(choice.log_prob(actions) * scaled[:, 0]).mean() + 0.5 * advantage.square().mean()
        optimizer.zero_grad()
        (loss - 0.01 * choice.entropy().mean()).backward()
        nn.utils.clip_grad_norm_([*actor.parameters(), *critic.parameters()], 0.5)
        optimizer.step()


class Contrast(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right = mlp(16, 32, 16), mlp(16, 32, 16)
        self.temperature = nn.Parameter(torch.tensor(2.0))

    def forward(self, a, b):
        return normalize(self.left(a)) @ normalize(self.right(b)).T * self.temperature.exp()


@healthy()
def contrastive_pairs():
    model = Contrast()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)
    inputs, _ = clusters(1024)
    for (batch,) in batches(inputs, size=64, steps=400):
        scores = model(batch, batch + 0.5 * torch.randn_like(batch))
        here = torch.arange(64)
        optimizer.zero_grad()
        (0.5 * cross_entropy(scores, here) + 0.5 * cross_entropy(scores.T, here)).backward()
        optimizer.step()


class Experts(nn.Module):
    """Each input goes to the one expert that the router likes best; an expert that nobody chose gets no gradient."""

    def __init__(self):
        super().__init__()
        self.router = nn.Linear(16, 8)
        self.experts = nn.ModuleList(mlp(16, 32, 4) for _ in range(8))

    def forward(self, x):
        weight, chosen = self.router(x).softmax(1).max(1)
        out = x.new_zeros(len(x), 4)
        for index in chosen.unique().tolist():
            mine = chosen == index
            out[mine] = self.experts[index](x[mine])
        return out * weight[:, None]


@healthy()
def mixture_of_experts():
    model = Experts()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for inputs, labels in batches(*clusters(), size=16, steps=500):
        optimizer.zero_grad()
        cross_entropy(model(inputs), labels).backward()
        optimizer.step()


@healthy()
def wasserstein_gan():
    """Weights clipped to a box, five steps of the critic for one of the generator, losses of any sign."""
    generator, critic = mlp(4, 32, 2), mlp(2, 32, 32, 1)
    optimizer_g = torch.optim.RMSprop(generator.parameters(), lr=1e-3)
    optimizer_c = torch.optim.RMSprop(critic.parameters(), lr=1e-3)
    for _ in range(150):
        for _ in range(5):
            real = torch.randn(64, 2) @ torch.tensor([[1.0, 0.5], [0.0, 0.3]]) + 1.0
            optimizer_c.zero_grad()
            (critic(generator(torch.randn(64, 4)).detach()).mean() - critic(real).mean()).backward()
            optimizer_c.step()
            with torch.no_grad():
                for parameter in critic.parameters():
                    parameter.clamp_(-0.1, 0.1)
        optimizer_g.zero_grad()
        (-critic(generator(torch.randn(64, 4))).mean()).backward()
        optimizer_g.step()


@healthy()
def learned_task_weights():
    """Two tasks weighted by learned uncertainties (Kendall 2018): the loss goes below nought."""
    trunk, first, second = mlp(8, 32, 32), nn.Linear(32, 1), nn.Linear(32, 1)
    model = nn.ModuleList([trunk, first, second])
    uncertainty = nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.Adam([*model.parameters(), uncertainty], lr=3e-3)
    for _ in range(600):
        inputs = torch.randn(32, 8)
        shared = trunk(inputs).relu()
        a = mse_loss(first(shared), inputs[:, :1].sin())
        b = mse_loss(second(shared), 0.1 * inputs[:, 1:2])
        optimizer.zero_grad()
        (a * (-uncertainty[0]).exp() + b * (-uncertainty[1]).exp() + uncertainty.sum()).backward()
        optimizer.step()


@healthy()
def fused_adam_fp16():
    model = mlp(16, 64, 64, 4)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**22, growth_interval=150)
    for inputs, labels in batches(*clusters(), steps=400):
        with torch.autocast("cpu", dtype=torch.float16):
            loss = cross_entropy(model(inputs), labels)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()


@healthy(ranks=2)
def ddp_accumulates():
    """Three of four micro-batches under no_sync; rank 0 validates and logs."""
    dist.init_process_group("gloo")
    model = DistributedDataParallel(mlp(16, 64, 64, 4))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    held_out = clusters(64, seed=8)
    for step, (inputs, labels) in enumerate(batches(*clusters(), size=8, steps=800, seed=dist.get_rank())):
        if step % 4 < 3:
            with model.no_sync():
                (cross_entropy(model(inputs), labels) / 4).backward()
            continue
        (cross_entropy(model(inputs), labels) / 4).backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % 100 == 99 and dist.get_rank() == 0:
            model.eval()
            with torch.no_grad():
                cross_entropy(model.module(held_out[0]), held_out[1]).item()
            model.train()
    dist.destroy_process_group()


@healthy()
def converged_relu():
    """A ReLU regression down to the rounding errors, thrown up by Adam every few hundred steps."""
    model = mlp(4, 64, 64, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    inputs = torch.randn(64, 4)
    targets = inputs @ torch.tensor([[0.3], [-0.2], [0.1], [0.05]])
    for _ in range(2500):
        optimizer.zero_grad()
        mse_loss(model(inputs), targets).backward()
        optimizer.step()


@healthy()
def growing_sequences():
    """A curriculum: 4 tokens, then 8, then 16."""
    model = Transformer(dropout=0.0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for step, (tokens, targets) in enumerate(batches(*sums(1024, length=16), steps=450)):
        length = 4 * 2 ** (step // 150)
        optimizer.zero_grad()
        cross_entropy(model(tokens[:, :length]).flatten(0, 1), targets[:, :length].flatten()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()


@healthy()
def distillation():
    """The teacher is in eval mode, as it should be."""
    teacher, student = mlp(16, 64, 64, 4), mlp(16, 16, 4)
    teacher.eval()
    optimizer = torch.optim.Adam(student.parameters(), lr=3e-3)
    for inputs, labels in batches(*clusters(), steps=400):
        with torch.no_grad():
            told = log_softmax(teacher(inputs) / 2, 1)
        scores = student(inputs)
        optimizer.zero_grad()
        soft = kl_div(log_softmax(scores / 2, 1), told, log_target=True, reduction="batchmean")
        (soft + cross_entropy(scores, labels)).backward()
        optimizer.step()


@healthy()
def frozen_batchnorm():
    """Fine-tuning with BatchNorm kept in eval mode, the rest in train mode."""
    model = cnn()
    for layer in model:
        if isinstance(layer, nn.BatchNorm2d):
            layer.eval().requires_grad_(requires_grad=False)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.02, momentum=0.9)
    for images, labels in batches(*pictures(), steps=300):
        optimizer.zero_grad()
        cross_entropy(model(images), labels).backward()
        optimizer.step()


@healthy()
def linear_probe_from_nought():
    """A head that begins at zero on a frozen backbone: its first steps are larger than itself."""
    backbone, head = mlp(16, 64, 32), nn.Linear(32, 4)
    backbone.requires_grad_(requires_grad=False)
    nn.init.normal_(head.weight, std=1e-4)
    nn.init.zeros_(head.bias)
    optimizer = torch.optim.Adam(head.parameters(), lr=1e-2)
    for inputs, labels in batches(*clusters(), steps=400):
        optimizer.zero_grad()
        cross_entropy(head(backbone(inputs).relu()), labels).backward()
        optimizer.step()


@healthy()
def tied_language_model():
    model = Transformer(width=32)
    model.head.weight = model.embedding.weight
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, betas=(0.9, 0.98))
    for tokens, targets in batches(*sums(2048), steps=300):
        optimizer.zero_grad(set_to_none=False)
        cross_entropy(model(tokens).flatten(0, 1), targets.flatten()).backward()
        optimizer.step()
