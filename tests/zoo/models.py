"""Networks of the zoo, small enough for one CPU thread."""

from itertools import pairwise

import torch
from torch import nn


def mlp(*widths, activation=nn.ReLU):
    """Linear layers of these widths with the activation between them."""
    layers = []
    for inside, outside in pairwise(widths):
        layers += [nn.Linear(inside, outside), activation()]
    return nn.Sequential(*layers[:-1])


def cnn(classes=4, norm=nn.BatchNorm2d, dropout=0.1):
    """Two convolutions over 8 x 8 pictures."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        norm(8),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1),
        norm(16),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(dropout),
        nn.Linear(16 * 16, classes),
    )


class Residual(nn.Module):
    """A pre-activation residual block of convolutions."""

    def __init__(self, width):
        super().__init__()
        self.body = nn.Sequential(
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
        )

    def forward(self, x):
        return x + self.body(x)


class Transformer(nn.Module):
    """A causal transformer over token sequences."""

    def __init__(self, vocabulary=16, width=32, layers=2, dropout=0.1, **options):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.position = nn.Parameter(0.02 * torch.randn(64, width))
        block = nn.TransformerEncoderLayer(width, 4, 2 * width, dropout, batch_first=True, **options)
        self.blocks = nn.TransformerEncoder(block, layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, vocabulary)

    def forward(self, tokens):
        length = tokens.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(length)
        return self.head(self.blocks(self.embedding(tokens) + self.position[:length], mask=mask, is_causal=True))


class Recurrent(nn.Module):
    """A recurrent network over token sequences or over waves."""

    def __init__(self, kind=nn.LSTM, vocabulary=16, width=32, outputs=None, **options):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width) if vocabulary else nn.Linear(1, width)
        self.cell = kind(width, width, batch_first=True, **options)
        self.head = nn.Linear(width, outputs or vocabulary)

    def forward(self, inputs):
        return self.head(self.cell(self.embedding(inputs))[0])
