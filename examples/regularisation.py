"""Three ways of training the same network on few images, and the table that compares them.

    python examples/regularisation.py                       makes the three runs under gpuwatch, then prints the table
    python examples/regularisation.py --strategy dropout    trains one of them (with or without gpuwatch)

A fully connected network on 300 of scikit-learn's handwritten digits learns them by heart. Dropout and weight decay (L2) make
that harder: `gpuwatch compare` shows the train accuracy, the validation accuracy and the gap between them.
"""

import argparse
import subprocess
import sys
import tempfile

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.tensorboard import SummaryWriter

STRATEGIES = {"none": (0.0, 0.0), "dropout": (0.5, 0.0), "l2": (0.0, 1e-4)}  # name -> (dropout, weight decay)


def train(strategy, epochs, seed):
    dropout, weight_decay = STRATEGIES[strategy]
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    digits = load_digits()
    order = torch.randperm(len(digits.target))
    images = torch.tensor(digits.images, dtype=torch.float32).flatten(1)[order] / 16.0
    labels = torch.tensor(digits.target)[order]
    train_images, train_labels, held_images, held_labels = images[:300], labels[:300], images[300:], labels[300:]
    # Handwriting is labelled by people: one label in ten is wrong in the training set, and learning it by heart costs.
    wrong = torch.rand(300) < 0.1
    train_labels = torch.where(wrong, torch.randint(0, 10, (300,)), train_labels)

    model = nn.Sequential(
        nn.Linear(64, 512),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Linear(512, 512),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Linear(512, 10),
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, weight_decay=weight_decay)
    criterion = nn.CrossEntropyLoss()

    @torch.no_grad()
    def accuracy(images, labels):
        model.eval()
        share = (model(images).argmax(1) == labels).float().mean().item()
        model.train()
        return share

    # gpuwatch mirrors what a job writes here; the files themselves go where the job always had them.
    with tempfile.TemporaryDirectory() as folder, SummaryWriter(folder) as writer:
        for epoch in range(epochs):
            for batch in torch.randperm(300).split(30):
                loss = criterion(model(train_images[batch]), train_labels[batch])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            writer.add_scalar("Accuracy/train", accuracy(train_images, train_labels), epoch)
            writer.add_scalar("Accuracy/val", accuracy(held_images, held_labels), epoch)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--strategy", choices=STRATEGIES, help="train this one only")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--logdir", default="runs")
    options = parser.parse_args()
    if options.strategy:
        train(options.strategy, options.epochs, options.seed)
        return
    gpuwatch = [sys.executable, "-m", "gpuwatch"]
    for strategy in STRATEGIES:
        arguments = ["--strategy", strategy, "--epochs", str(options.epochs), "--seed", str(options.seed)]
        under = ["run", "--quiet", "--logdir", options.logdir, "--name", strategy, "--"]
        subprocess.run([*gpuwatch, *under, sys.executable, __file__, *arguments], check=True)
    subprocess.run([*gpuwatch, "compare", "--logdir", options.logdir, *STRATEGIES], check=True)


if __name__ == "__main__":
    main()
