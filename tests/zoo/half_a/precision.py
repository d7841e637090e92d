"""Half A, broken: mixed precision."""

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from tests.zoo.data import batches, clusters
from tests.zoo.models import mlp
from tests.zoo.program import broken


@broken(
    "from one step on every loss overflows float16: the scaler skips for ever",
    expects=("loss_scale_collapse", "nonfinite_gradient"),
    allows=("nonfinite_loss", "amp_skip_rate", "loss_spike", "loss_diverging", "parameters_not_updated", "amp_underflow"),
    onset=100,
    source="DeepSpeed issue 697; keras issue 16100",
)
def overflow_for_ever():
    model = mlp(16, 64, 4)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for step, (inputs, labels) in enumerate(batches(*clusters(), steps=160), 1):
        with torch.autocast("cpu", dtype=torch.float16):
            scores = model(inputs * (1e4 if step >= 100 else 1.0))
            loss = cross_entropy(scores.half() * (1e3 if step >= 100 else 1.0), labels)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()


@broken(
    "growth_interval=4: the scale is raised into overflow at every fifth step",
    expects=("amp_skip_rate",),
    onset=50,
    source="training-diagnostics 2.2 M1",
)
def growth_interval_too_short():
    model = mlp(16, 64, 64, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**18, growth_interval=4)
    for inputs, labels in batches(*clusters(), steps=300):
        with torch.autocast("cpu", dtype=torch.float16):
            loss = cross_entropy(model(inputs), labels)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()


@broken(
    "the scale stays at 1 and the loss is small: float16 gradients are flushed to zero",
    expects=("amp_underflow",),
    allows=("vanishing_gradient", "update_ratio_low", "loss_plateau", "dead_layer", "parameters_not_updated"),
    source="Micikevicius 2018; keras issue 16100",
)
def scale_of_one():
    model = mlp(16, 64, 64, 64, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=1.0, growth_interval=100_000)
    for inputs, labels in batches(*clusters(), steps=250):
        with torch.autocast("cpu", dtype=torch.float16):
            loss = cross_entropy(model(inputs), labels) * 1e-5
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()


@broken(
    "clip_grad_norm_ without unscale_ before it",
    expects=("unscaled_clipping",),
    allows=("loss_plateau", "update_ratio_low"),
    source="PyTorch AMP examples; training-diagnostics section 5",
)
def clipped_while_scaled():
    model = mlp(16, 64, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**14)
    for inputs, labels in batches(*clusters(), steps=120):
        with torch.autocast("cpu", dtype=torch.float16):
            loss = cross_entropy(model(inputs), labels)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
