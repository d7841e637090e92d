"""The hooks put in by hand, with more than gradients: images, feature maps, a figure, validation accuracy, a note.

    gpuwatch daemon --logdir runs &
    python examples/by_hand.py
    tensorboard --logdir runs

Without a daemon it trains all the same, and says in one line that nobody records. It needs torch and scikit-learn; with
matplotlib it also logs a figure.
"""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional

import gpuwatch

try:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt
except ModuleNotFoundError:
    plt = None

EPOCHS = 5
BATCH = 64


class DigitsNet(nn.Module):
    """Images float32[N, 1, 8, 8] to logits float32[N, 10]."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 16, 3, padding=1)
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(16 * 8 * 8, 10)

    def forward(self, images):
        return self.head(self.dropout(functional.relu(self.conv(images)).flatten(1)))


def predictions(model, images):
    """The likeliest digit int64[N] of each of `images` float32[N, 1, 8, 8]."""
    model.eval()
    with torch.no_grad():
        predicted = model(images).argmax(1)
    model.train()
    return predicted


def confusion(predicted, labels):
    """A matplotlib figure: how often each digit of `labels` int64[N] was taken for which one, `predicted` int64[N]."""
    matrix = torch.zeros(10, 10, dtype=torch.int64)
    for truth, guess in zip(labels.tolist(), predicted.tolist(), strict=True):
        matrix[truth, guess] += 1
    figure, axes = plt.subplots(figsize=(4, 4))
    axes.imshow(matrix, cmap="viridis")
    axes.set(xlabel="predicted", ylabel="true", xticks=range(10), yticks=range(10))
    return figure


def main():
    torch.manual_seed(0)
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16.0
    labels = torch.tensor(digits.target)
    train_images, train_labels, held_images, held_labels = images[:1400], labels[:1400], images[1400:], labels[1400:]

    model = DigitsNet()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, weight_decay=1e-4)

    with gpuwatch.watch(model, optimizer, name="by-hand"):
        gpuwatch.log_images("train_samples", train_images, step=0)
        gpuwatch.feature_maps(model.conv, every=50)
        for epoch in range(1, EPOCHS + 1):
            for batch in torch.randperm(len(train_images)).split(BATCH):
                optimizer.zero_grad()
                loss = functional.cross_entropy(model(train_images[batch]), train_labels[batch])
                loss.backward()
                optimizer.step()
            predicted = predictions(model, held_images)
            accuracy = (predicted == held_labels).float().mean().item()
            gpuwatch.log("Accuracy/val", accuracy, epoch)
            if plt is not None:
                gpuwatch.log_figure("confusion", confusion(predicted, held_labels), epoch)
            gpuwatch.log_histogram("head.weight", model.head.weight, epoch)
            print(f"epoch {epoch}  loss {loss.item():.3f}  validation {accuracy:.1%}")
        gpuwatch.log_text("notes", f"Reached **{accuracy:.1%}** on {len(held_images)} held-out digits.", EPOCHS)


if __name__ == "__main__":
    main()
