"""Training jobs on a GPU for the overhead bench, and what people use to see their gradients, each where it is installed."""

from __future__ import annotations

import importlib.util
import os
import tempfile
import time

import torch
from torch import nn

from tests.gpu.pretended import smaller


class Gpt2(nn.Module):
    """GPT-2 of 124 M parameters in 148 tensors, written out so that nothing but torch is needed."""

    def __init__(self, layers=12, width=768, heads=12, words=50257, positions=1024):
        super().__init__()
        self.words, self.positions = nn.Embedding(words, width), nn.Embedding(positions, width)
        self.blocks = nn.ModuleList(_Block(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)

    def forward(self, tokens):
        x = self.words(tokens) + self.positions(torch.arange(tokens.shape[1], device=tokens.device))
        for block in self.blocks:
            x = block(x)
        return self.norm(x) @ self.words.weight.T


class _Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attend, self.project = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.widen, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        batch, length, width = x.shape
        parts = self.attend(self.before(x)).view(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        seen = nn.functional.scaled_dot_product_attention(*parts.unbind(0), is_causal=True)
        x = x + self.project(seen.transpose(1, 2).reshape(batch, length, width))
        return x + self.narrow(nn.functional.gelu(self.widen(self.between(x))))


class Job:
    """A model, its fused AdamW and one batch; `seconds(count, observe)` is the wall time of so many steps, device included."""

    def __init__(self, model, loss, autocast=True):
        self.model = model
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
        self._loss, self._autocast = loss, autocast
        self.steps = 0

    def seconds(self, count, observe=None):
        torch.cuda.synchronize()
        began = time.perf_counter()
        for _ in range(count):
            self.optimizer.zero_grad(set_to_none=True)
            with torch.autocast("cuda", dtype=torch.bfloat16, enabled=self._autocast):
                loss = self._loss(self.model)
            loss.backward()
            if observe is not None:
                observe(self.model, self.steps)
            self.optimizer.step()
            self.steps += 1
        torch.cuda.synchronize()
        return time.perf_counter() - began


def jobs():
    """(name, function that makes the Job, most that a step with the hooks may take, steps a block) of each."""
    found = [("GPT-2 124 M, 16 x 512 tokens, bf16", _gpt2, 1.005, 20)]
    if importlib.util.find_spec("torchvision") is not None:
        found.append(("ResNet-50, 64 x 224 x 224, bf16", _resnet, 1.005, 20))
    else:
        print("left out: ResNet-50 (torchvision is not installed)")
    return [*found, ("MLP, 3 x 512, batch 64, launch-bound", _mlp, 1.02, 300)]


def _gpt2():
    tokens = torch.randint(0, smaller(50257, 50), smaller((16, 512), (2, 8)), device="cuda")

    def loss(model):
        return nn.functional.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten())

    return Job(Gpt2(**smaller({}, {"layers": 1, "width": 16, "heads": 2, "words": 50, "positions": 8})).cuda(), loss)


def _resnet():
    from torchvision.models import resnet50

    torch.backends.cudnn.benchmark = True
    size = smaller(64, 1)
    images, classes = torch.randn(size, 3, 224, 224, device="cuda"), torch.randint(0, 1000, (size,), device="cuda")
    return Job(resnet50().cuda(), lambda model: nn.functional.cross_entropy(model(images), classes))


def _mlp():
    width = smaller(512, 16)
    inputs = torch.randn(64, width, device="cuda")
    layers = [nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width)]
    return Job(nn.Sequential(*layers).cuda(), lambda model: model(inputs).square().mean(), autocast=False)


# ------------------------------------------------------------------------------------------------------------ observers
def _print_loop(model, _step):
    return {name: p.grad.abs().mean().item() for name, p in model.named_parameters()}


def _foreach(model, _step):
    return torch._foreach_norm([p.grad for p in model.parameters()])


def _clip(model, _step):
    return torch.nn.utils.clip_grad_norm_(model.parameters(), 1e9)


def _lightning(model, _step):
    from lightning.pytorch.utilities import grad_norm

    return {name: float(value) for name, value in grad_norm(model, 2).items()}


def peers():
    """{name: function (job, steps) -> seconds} of the others, without those that are not installed, which are named."""
    found = {
        "torch._foreach_norm, left on the device": _foreach,
        "clip_grad_norm_": _clip,
        "p.grad.abs().mean().item() for each": _print_loop,
    }
    if importlib.util.find_spec("lightning") is not None:
        found["Lightning's grad_norm"] = _lightning
    else:
        print("left out: Lightning's grad_norm (lightning is not installed)")
    runs = {name: lambda job, count, observe=observe: job.seconds(count, observe) for name, observe in found.items()}
    if importlib.util.find_spec("wandb") is not None:
        runs["wandb.watch, log_freq=1"] = _wandb
    else:
        print("left out: wandb.watch (wandb is not installed)")
    return runs


def _wandb(job, count):
    import wandb

    os.environ.update(WANDB_MODE="offline", WANDB_SILENT="true")
    with tempfile.TemporaryDirectory() as folder:
        run = wandb.init(project="overhead", dir=folder)
        wandb.watch(job.model, log="gradients", log_freq=1)
        try:
            return job.seconds(count, lambda _model, step: run.log({"step": step}))
        finally:
            wandb.unwatch(job.model)
            run.finish()
