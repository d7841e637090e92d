"""A small network on handwritten digits, trained with a fault of your choice: what docs/tutorial.md looks for the cause of.

    gpuwatch run --name explode -- python examples/misbehaving.py explode
    gpuwatch run --name overfit -- python examples/misbehaving.py overfit
    gpuwatch run --name slow    -- python examples/misbehaving.py slow
    gpuwatch run --name memory  -- python examples/misbehaving.py memory

Nothing here knows of gpuwatch. Each takes about half a minute on two cores.
"""

import argparse
import resource
import tempfile
import time

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torch.utils.tensorboard import SummaryWriter

FAULTS = ("none", "explode", "overfit", "slow", "memory")
EXPLODES_AT_STEP = 300
ADDRESS_SPACE_BYTES = 4 << 30  # what the job may take, as in a container
READ_SECONDS = 0.0005  # of one image on a busy network disk


class Digits(Dataset):
    """Images float32[1, 8, 8] in 0..1 with their label; each read takes `read_seconds`."""

    def __init__(self, images, labels, read_seconds=0.0):
        self.images, self.labels, self.read_seconds = images, labels, read_seconds

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        if self.read_seconds:
            time.sleep(self.read_seconds)
        return self.images[index], self.labels[index]


def load(fault):
    """Training and validation digits; few of them, and one label in five wrong, for a network that is to overfit."""
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16.0
    labels = torch.tensor(digits.target)
    order = torch.randperm(len(labels))
    images, labels = images[order], labels[order]
    train_count = 300 if fault == "overfit" else 1400
    train_labels = labels[:train_count].clone()
    if fault == "overfit":
        wrong = torch.rand(train_count) < 0.2
        train_labels[wrong] = torch.randint(0, 10, (int(wrong.sum()),))
    train = Digits(images[:train_count], train_labels, READ_SECONDS if fault == "slow" else 0.0)
    return train, Digits(images[1400:], labels[1400:])


def train(fault, epochs):
    torch.manual_seed(0)
    torch.set_num_threads(1)
    training, held_out = load(fault)
    batches = DataLoader(training, batch_size=50, shuffle=True)
    model = nn.Sequential(
        *(nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(1024, 256), nn.ReLU(), nn.Linear(256, 10)),
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    criterion = nn.CrossEntropyLoss()
    if fault == "memory":
        resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE_BYTES, ADDRESS_SPACE_BYTES))
    step, losses = 0, []
    with tempfile.TemporaryDirectory() as folder, SummaryWriter(folder) as writer:
        for epoch in range(epochs):
            model.train()
            for images, labels in batches:
                step += 1
                if fault == "explode" and step == EXPLODES_AT_STEP:
                    optimizer.param_groups[0]["lr"] *= 300  # a schedule with a mistyped exponent
                loss = criterion(model(images), labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                if fault == "memory":
                    losses.append((loss, images.repeat(200, 1, 1, 1)))  # "for a plot later"
            model.eval()
            with torch.no_grad():
                answers = model(held_out.images)
            writer.add_scalar("Loss/val", criterion(answers, held_out.labels).item(), epoch)
            writer.add_scalar("Accuracy/val", (answers.argmax(1) == held_out.labels).float().mean().item(), epoch)
            print(f"epoch {epoch + 1}  loss {loss.item():.4f}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("fault", choices=FAULTS)
    parser.add_argument("--epochs", type=int, help="default: what shows the fault")
    options = parser.parse_args()
    usual = {"none": 30, "explode": 30, "overfit": 150, "slow": 15, "memory": 200}
    train(options.fault, options.epochs or usual[options.fault])


if __name__ == "__main__":
    main()
