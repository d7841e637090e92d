"""Synthetic data of the zoo: small, learnable, the same in every run; noisy, so that a loss does not simply go to nought."""

import torch


def clusters(rows=512, classes=4, features=16, noise=3.0, seed=0):
    """Overlapping Gaussian clusters: inputs float32[rows, features], labels int64[rows]."""
    random = torch.Generator().manual_seed(seed)
    centres = 2.0 * torch.randn(classes, features, generator=torch.Generator().manual_seed(99))
    labels = torch.randint(classes, (rows,), generator=random)
    return centres[labels] + noise * torch.randn(rows, features, generator=random), labels


def pictures(rows=256, classes=4, size=8, channels=1, seed=0):
    """Noise with a bright stripe whose place is the class: float32[rows, channels, size, size], int64[rows]."""
    random = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (rows,), generator=random)
    images = torch.randn(rows, channels, size, size, generator=random)
    for row, label in enumerate(labels.tolist()):
        images[row, :, label * size // classes] += 0.9
    return images, labels


def sums(rows=256, length=12, vocabulary=16, seed=0):
    """Token sequences and their running sums modulo the vocabulary: two int64[rows, length]."""
    tokens = torch.randint(vocabulary, (rows, length), generator=torch.Generator().manual_seed(seed))
    return tokens, tokens.cumsum(1) % vocabulary


def waves(rows=256, length=20, seed=0):
    """Noisy sines and the value that follows: float32[rows, length, 1], float32[rows, 1]."""
    random = torch.Generator().manual_seed(seed)
    phase = 6.28 * torch.rand(rows, 1, generator=random)
    time = torch.arange(length + 1) * 0.4
    values = torch.sin(phase + time) + 0.05 * torch.randn(rows, length + 1, generator=random)
    return values[:, :length, None], values[:, length:]


def batches(*tensors, size=32, steps=200, seed=1):
    """`steps` random batches of the tensors' rows."""
    random = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        chosen = torch.randint(len(tensors[0]), (size,), generator=random)
        yield tuple(tensor[chosen] for tensor in tensors)
