"""Trainings for the AMP bench: each a model, an optimizer and a step as their user would write it, in float32."""

from __future__ import annotations

import importlib.util

import torch
from torch import nn
from torch.nn import functional

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
HALF = torch.float16 if CUDA else torch.bfloat16


class Transformer(nn.Module):
    """Tokens int64[N, T] to logits float32[N, T, vocabulary]."""

    def __init__(self, layers, width, vocabulary):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        layer = nn.TransformerEncoderLayer(
            width, max(1, width // 64), 4 * width, dropout=0.0, batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, vocabulary, bias=False)

    def forward(self, tokens):
        return self.head(self.layers(self.embedding(tokens)))


class _Residual(nn.Module):
    def __init__(self, before, after, stride):
        super().__init__()
        self.straight = nn.Sequential(
            nn.Conv2d(before, after, 3, stride, 1, bias=False),
            nn.BatchNorm2d(after),
            nn.ReLU(),
            nn.Conv2d(after, after, 3, 1, 1, bias=False),
            nn.BatchNorm2d(after),
        )
        self.across = nn.Conv2d(before, after, 1, stride, bias=False) if before != after or stride > 1 else nn.Identity()

    def forward(self, x):
        return functional.relu(self.straight(x) + self.across(x))


def residual_network(width=32, classes=10):
    """A ResNet for images float32[N, 3, 32, 32]: a stem and eight residual blocks in four stages, 2.8 M parameters."""
    stages, before = [], width
    for number in range(4):
        after = width << number
        stages += [_Residual(before, after, 1 if number == 0 else 2), _Residual(after, after, 1)]
        before = after
    stem = nn.Sequential(nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
    return nn.Sequential(stem, *stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, classes))


def _small_images(batch):
    return residual_network(), torch.randn(batch, 3, 32, 32)


def _large_images(batch):
    import torchvision

    return torchvision.models.resnet50(num_classes=100), torch.randn(batch, 3, 224, 224)


def _tokens(layers, width, vocabulary, batch, length):
    return Transformer(layers, width, vocabulary), torch.randint(0, vocabulary, (batch, length))


def cases():
    """{name: function that makes (model, its inputs)} of what this machine can train."""
    if not CUDA:
        return {
            "residual CNN 2.8 M, batch 16": lambda: _small_images(16),
            "residual CNN 2.8 M, batch 32": lambda: _small_images(32),
            "transformer 4 x 256, 8 x 64 tokens": lambda: _tokens(4, 256, 1000, 8, 64),
        }
    found = {"transformer of GPT-2's size, 16 x 512 tokens": lambda: _tokens(12, 768, 50257, 16, 512)}
    if importlib.util.find_spec("torchvision") is None:
        print("left out: ResNet-50 (torchvision is not installed)")
        return found
    return {"ResNet-50, batch 64": lambda: _large_images(64), "ResNet-50, batch 128": lambda: _large_images(128), **found}


def training(name):
    """(model, optimizer, step) of a case; `step(half)` takes one training step, its forward pass under autocast or not."""
    torch.manual_seed(0)
    torch.set_num_threads(1 if not CUDA else torch.get_num_threads())
    torch.backends.cudnn.benchmark = True
    model, inputs = cases()[name]()
    model, inputs = model.to(DEVICE), inputs.to(DEVICE)
    labels = inputs if inputs.dtype == torch.int64 else torch.randint(0, 10, (len(inputs),), device=DEVICE)
    optimizer = torch.optim.Adam(model.parameters(), 1e-4)

    def step(half=False):
        with torch.autocast(DEVICE.type, dtype=HALF, enabled=half):
            output = model(inputs)
            loss = functional.cross_entropy(output.flatten(0, -2), labels.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return model, optimizer, step
