"""Half B, broken: mixed precision."""

import torch
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss

from tests.zoo.data import batches, clusters, waves
from tests.zoo.models import Recurrent, mlp
from tests.zoo.program import broken


@broken(
    "a hook divides by a norm that becomes zero: every backward is not finite, and the scale goes down to 1",
    expects=("loss_scale_collapse", "nonfinite_gradient"),
    allows=("amp_skip_rate", "nonfinite_loss", "amp_underflow", "parameters_not_updated"),
    onset=80,
    source="DeepSpeed issue 697; PyTorch forum: scale goes to zero",
)
def backward_never_finite():
    model = mlp(16, 64, 64, 4)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    broken_now = []
    model[2].weight.register_hook(lambda grad: grad / 0.0 if broken_now else grad)
    for step, (inputs, labels) in enumerate(batches(*clusters(), steps=140), 1):
        if step == 80:
            broken_now.append(True)
        with torch.autocast("cpu", dtype=torch.float16):
            loss = cross_entropy(model(inputs), labels)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()


@broken(
    "one batch in eight has inputs that overflow float16",
    expects=("amp_skip_rate",),
    allows=("nonfinite_loss",),
    onset=50,
    source="training-diagnostics 2.2 M1; NVIDIA Apex issues",
)
def every_eighth_batch_overflows():
    model = mlp(16, 64, 4)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**14, growth_interval=5)
    for step, (inputs, labels) in enumerate(batches(*clusters(), steps=320), 1):
        if step % 8 == 0:
            inputs[0] = 1e6
        with torch.autocast("cpu", dtype=torch.float16):
            loss = cross_entropy(model(inputs), labels)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()


@broken(
    "a static scale of 8 under a loss that is divided by the number of all pixels of a large set",
    expects=("amp_underflow",),
    allows=("vanishing_gradient", "update_ratio_low", "loss_plateau", "dead_layer", "parameters_not_updated"),
    source="Micikevicius 2018",
)
def static_scale_too_small():
    model = Recurrent(nn.LSTM, vocabulary=0, outputs=1)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_factor=1.0001, growth_interval=10_000)
    for series, target in batches(*waves(), steps=250):
        with torch.autocast("cpu", dtype=torch.float16):
            loss = mse_loss(model(series)[:, -1].float(), target) / 1e7
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()


@broken(
    "from one epoch on the gradients are clipped in a callback, before the loop's own unscale_",
    expects=("unscaled_clipping",),
    allows=("loss_plateau", "update_ratio_low"),
    onset=60,
    source="Lightning issues 4151 and 9330",
)
def callback_clips_early():
    model = mlp(16, 64, 64, 4)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    for step, (inputs, labels) in enumerate(batches(*clusters(), steps=140), 1):
        with torch.autocast("cpu", dtype=torch.float16):
            loss = cross_entropy(model(inputs), labels)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        if step >= 60:
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
