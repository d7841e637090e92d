"""Train a small convolutional network on scikit-learn's handwritten digits, for a given time.

    python digits.py --seconds 20 --break-at 0.5

At `--break-at` of the time somebody multiplies the learning rate by `--break-by`, as a mistyped schedule would.
"""

import argparse
import sys
import time

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset


class DigitsNet(nn.Module):
    """Images float32[N, 1, 8, 8] to logits float32[N, 10]."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 3, padding=1)
        self.conv2 = nn.Conv2d(32, 64, 3, padding=1)
        self.dropout = nn.Dropout(0.5)
        self.fc1 = nn.Linear(64 * 4 * 4, 128)
        self.fc2 = nn.Linear(128, 10)

    def forward(self, images):
        features = functional.relu(self.conv1(images))
        features = functional.max_pool2d(functional.relu(self.conv2(features)), 2)
        hidden = functional.relu(self.fc1(features.flatten(1)))
        return self.fc2(self.dropout(hidden))


def load(batch_size):
    """The digits, 80 % to train and 20 % to validate, as loaders of (float32[N, 1, 8, 8] in 0..1, int64[N])."""
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16.0
    labels = torch.tensor(digits.target)
    split = train_test_split(images, labels, test_size=0.2, random_state=0, stratify=labels)
    train, validation = TensorDataset(split[0], split[2]), TensorDataset(split[1], split[3])
    return DataLoader(train, batch_size=batch_size, shuffle=True), DataLoader(validation, batch_size=512)


@torch.no_grad()
def accuracy(model, loader, device):
    """Share of `loader`'s images that the model, in eval mode, gets right."""
    model.eval()
    right = sum((model(images.to(device)).argmax(1) == labels.to(device)).sum().item() for images, labels in loader)
    model.train()
    return right / len(loader.dataset)


class Progress:
    """A bar on a terminal, a line every few seconds elsewhere."""

    def __init__(self, seconds):
        self.seconds = seconds
        self.bar = sys.stderr.isatty()
        self.shown = -1.0

    def show(self, elapsed, text):
        if elapsed - self.shown < (0.1 if self.bar else 5.0):
            return
        self.shown = elapsed
        done = min(1.0, elapsed / self.seconds)
        if self.bar:
            filled = round(30 * done)
            print(f"\r\x1b[K[{'#' * filled}{'.' * (30 - filled)}] {done:4.0%}  {text}", end="", file=sys.stderr, flush=True)
        else:
            print(f"{elapsed:5.1f} s  {text}", file=sys.stderr, flush=True)

    def close(self):
        if self.bar:
            print(file=sys.stderr)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20.0, help="how long to train")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--weight-decay", type=float, default=1e-4)
    parser.add_argument("--break-at", type=float, default=0.5, help="share of the time after which the rate is multiplied")
    parser.add_argument("--break-by", type=float, default=1.0, help="by what; 1 leaves it alone")
    options = parser.parse_args()

    torch.manual_seed(0)
    torch.set_num_threads(1)  # the network is too small to gain from more
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    mixed = device.type == "cuda"
    train, validation = load(options.batch_size)
    model = DigitsNet().to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=options.learning_rate, weight_decay=options.weight_decay)
    scaler = torch.amp.GradScaler(device.type, enabled=mixed)
    criterion = nn.CrossEntropyLoss()

    progress, began, epoch, broken = Progress(options.seconds), time.monotonic(), 0, False
    reached = accuracy(model, validation, device)
    while time.monotonic() - began < options.seconds:
        epoch += 1
        for images, labels in train:
            with torch.autocast(device.type, dtype=torch.float16, enabled=mixed):
                loss = criterion(model(images.to(device)), labels.to(device))
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            scaler.step(optimizer)
            scaler.update()

            elapsed = time.monotonic() - began
            if not broken and elapsed >= options.break_at * options.seconds:
                broken = True
                for group in optimizer.param_groups:
                    group["lr"] *= options.break_by
            progress.show(elapsed, f"epoch {epoch}  loss {loss.item():.3f}  validation {reached:.1%}")
            if elapsed >= options.seconds:
                break
        reached = accuracy(model, validation, device)
    progress.close()
    print(f"trained {epoch} epochs, validation accuracy {reached:.1%}")


if __name__ == "__main__":
    main()
