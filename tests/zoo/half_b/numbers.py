"""Half B, broken: numbers."""

import tempfile
import time

import torch
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss
from torch.utils.tensorboard import SummaryWriter

from tests.zoo.data import batches, clusters, pictures, sums, waves
from tests.zoo.models import Recurrent, Transformer, cnn, mlp
from tests.zoo.program import DIVERGED, RUINED, broken


@broken(
    "a masked mean over a batch in which nothing is masked in: 0/0",
    expects=("nonfinite_loss",),
    allows=RUINED,
    onset=130,
    source="Hugging Face forum: nan loss with ignore_index",
)
def empty_mask():
    model = Transformer()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for step, (tokens, targets) in enumerate(batches(*sums(), steps=180), 1):
        if step == 130:
            targets.fill_(-100)
        optimizer.zero_grad()
        cross_entropy(model(tokens).flatten(0, 1), targets.flatten()).backward()
        optimizer.step()


@broken(
    "torch.where around a power whose derivative is infinite at 0: the loss is finite, its gradient is not",
    expects=("nonfinite_gradient",),
    allows=(*RUINED, "exploding_gradient"),  # near 0 the derivative is large before it is infinite
    onset=90,
    source="pytorch issue on where and nan gradients",
)
def where_hides_infinity():
    model = mlp(16, 32, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    inputs, _ = clusters()
    for step, (batch,) in enumerate(batches(inputs, steps=150), 1):
        away = (model(batch) - batch[:, :1]).abs()
        if step == 90:
            away = torch.cat([away[1:], away[:1] * 0.0])
        optimizer.zero_grad()
        torch.where(away > 0, away**0.5, torch.zeros_like(away)).mean().backward()
        optimizer.step()


@broken(
    "exp overflows in a softplus written by hand once a feature arrives in other units",
    expects=("nonfinite_loss",),
    allows=(*RUINED, "exploding_gradient", "loss_spike"),
    onset=100,
    source="DeepLocalize; forum threads on log(1 + exp(x))",
)
def exp_overflows():
    model = Recurrent(nn.LSTM, vocabulary=0, outputs=1)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for step, (series, target) in enumerate(batches(*waves(), steps=160), 1):
        margin = model(series)[:, -1] * target * (1e4 if step >= 100 else 1.0)
        optimizer.zero_grad()
        (1 + (-margin).exp()).log().mean().backward()
        optimizer.step()


@broken(
    "one target of one batch is ten thousand times too large",
    expects=("exploding_gradient", "loss_spike"),
    allows=DIVERGED,
    onset=220,
    source="SageMaker Debugger ExplodingTensor; forum threads on outliers under MSE",
)
def outlier_target():
    model = mlp(8, 64, 64, 1, activation=nn.Tanh)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    inputs = torch.randn(1024, 8)
    targets = inputs[:, :1] * inputs[:, 1:2] + 0.3 * torch.randn(1024, 1)
    for step, (batch, target) in enumerate(batches(inputs, targets, steps=280), 1):
        if step == 220:
            target[0] = 1e4
        optimizer.zero_grad()
        mse_loss(model(batch), target).backward()
        optimizer.step()


@broken(
    "a schedule with its sign wrong: the learning rate doubles every 20 steps",
    expects=("exploding_gradient", "loss_diverging"),
    allows=DIVERGED,
    onset=240,
    source="reference test of section 2.3 (lr ramp), Cohen 2021",
)
def learning_rate_doubles():
    """The onset is the doubling after which the loss first rises: the fourth, to 0.32."""
    model = mlp(16, 64, 64, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    for step, (inputs, labels) in enumerate(batches(*clusters(), steps=420), 1):
        if step > 160 and step % 20 == 0:
            optimizer.param_groups[0]["lr"] *= 2
        optimizer.zero_grad()
        cross_entropy(model(inputs), labels).backward()
        optimizer.step()


@broken(
    "ten sigmoid convolutions without normalisation",
    expects=("vanishing_gradient",),
    allows=("loss_plateau", "update_ratio_low"),
    source="AUTOTRAINER; SageMaker Debugger VanishingGradient",
)
def sigmoid_convolutions():
    layers = [layer for i in range(10) for layer in (nn.Conv2d(8 if i else 1, 8, 3, padding=1), nn.Sigmoid())]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(512, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for images, labels in batches(*pictures(), size=8, steps=300):
        optimizer.zero_grad()
        cross_entropy(model(images), labels).backward()
        optimizer.step()


@broken(
    "a checkpoint is converted wrongly in mid-run: the biases of a layer come back as -50, and it never fires again",
    expects=("dead_layer",),
    allows=DIVERGED,
    onset=150,
    source="CS231n on dying ReLUs; AUTOTRAINER",
)
def layer_dies():
    model = mlp(16, 32, 32, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for step, (inputs, labels) in enumerate(batches(*clusters(), steps=400), 1):
        if step == 150:
            with torch.no_grad():
                model[2].bias.fill_(-50.0)
        optimizer.zero_grad()
        cross_entropy(model(inputs), labels).backward()
        optimizer.step()


@broken(
    "one batch was not divided by 255",
    expects=("loss_spike",),
    allows=DIVERGED,
    onset=260,
    source="UMLAUT; SageMaker Debugger CheckInputImages",
)
def one_raw_batch():
    model = mlp(64, 64, 64, 4, activation=nn.GELU)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    images, labels = pictures(1024)
    for step, (batch, some) in enumerate(batches(images.flatten(1), labels, steps=300), 1):
        optimizer.zero_grad()
        cross_entropy(model(batch * (255.0 if step == 260 else 1.0)), some).backward()
        optimizer.step()


@broken(
    "the label map of a new shard is shifted by one class",
    expects=("loss_diverging",),
    allows=DIVERGED,
    onset=240,
    source="TrainCheck; dataset version mismatches",
)
def label_map_shifted():
    model = cnn(norm=lambda width: nn.GroupNorm(4, width))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for step, (images, labels) in enumerate(batches(*pictures(512), steps=320), 1):
        optimizer.zero_grad()
        cross_entropy(model(images), (labels + 1) % 4 if step >= 240 else labels).backward()
        optimizer.step()


@broken(
    "a sensor drifts: the inputs lose their signal little by little",
    expects=("loss_diverging",),
    allows=("exploding_gradient", "loss_spike", "loss_plateau"),
    onset=500,
    source="SageMaker Debugger Overtraining; data drift",
)
def inputs_fade():
    model = mlp(16, 64, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    inputs, labels = clusters(4096)
    for step, (batch, some) in enumerate(batches(inputs, labels, steps=1000), 1):
        clean = max(0.0, 1.0 - max(0, step - 500) / 300)
        optimizer.zero_grad()
        cross_entropy(model(clean * batch + (1 - clean) * 3.0 * torch.randn_like(batch)), some).backward()
        optimizer.step()


@broken(
    "the labels have nothing to do with the inputs: the loss never leaves log(classes)",
    expects=("loss_plateau",),
    source="UMLAUT; Karpathy's recipe",
)
def unrelated_labels():
    model = mlp(16, 32, 10)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    for _ in range(1800):
        optimizer.zero_grad()
        cross_entropy(model(torch.randn(64, 16)), torch.randint(10, (64,))).backward()
        optimizer.step()


@broken(
    "Adam is given a learning rate that was meant for SGD",
    expects=("update_ratio_high",),
    allows=(*DIVERGED, "vanishing_gradient"),
    source="AUTOTRAINER; UMLAUT learning rate out of range",
)
def adam_at_one():
    model = Recurrent(nn.GRU, vocabulary=0, outputs=1)
    optimizer = torch.optim.Adam(model.parameters(), lr=1.0)
    for series, target in batches(*waves(), steps=150):
        optimizer.zero_grad()
        mse_loss(model(series)[:, -1], target).backward()
        optimizer.step()


@broken(
    "a learning rate of 50 from the first step on",
    expects=("update_ratio_high",),
    allows=(*DIVERGED, "vanishing_gradient"),
    source="AUTOTRAINER; UMLAUT learning rate out of range",
)
def sgd_at_fifty():
    model = cnn(dropout=0.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=50.0)
    for images, labels in batches(*pictures(), steps=120):
        optimizer.zero_grad()
        cross_entropy(model(images), labels).backward()
        optimizer.step()


@broken(
    "fine-tuning with a learning rate of 1e-10: nothing moves",
    expects=("update_ratio_low",),
    allows=("loss_plateau", "parameters_not_updated"),
    source="SageMaker Debugger UnchangedTensor",
)
def fine_tuning_too_slow():
    model = Transformer()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-10, weight_decay=0.01)
    for tokens, targets in batches(*sums(), steps=250):
        optimizer.zero_grad()
        cross_entropy(model(tokens).flatten(0, 1), targets.flatten()).backward()
        optimizer.step()


@broken(
    "a rare class gets a weight of 100 and appears first when beta2=0.9999 has long forgotten the early gradients",
    expects=("adam_second_moment",),
    allows=DIVERGED,
    onset=400,
    source="StableAdamW (arXiv 2304.13013); arXiv 2309.14322",
)
def rare_class_appears():
    model = mlp(16, 64, 5)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, betas=(0.9, 0.9999))
    weight = torch.tensor([1.0, 1.0, 1.0, 1.0, 100.0])
    for step, (inputs, labels) in enumerate(batches(*clusters(), steps=480), 1):
        if step >= 400:
            labels[:8] = 4
        optimizer.zero_grad()
        (cross_entropy(model(inputs), labels, weight, reduction="none").mean()).backward()
        optimizer.step()


@broken(
    "a convolution network on sixty pictures, half of them mislabelled, its validation loss written with SummaryWriter",
    expects=("overfitting",),
    allows=("loss_plateau", "loss_spike"),
    onset=50,
    source="Prechelt 1998; AUTOTRAINER overfit gap",
)
def sixty_pictures():
    model = cnn(dropout=0.0)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    images, labels = pictures(60)
    labels[::2] = torch.randint(4, (30,))
    held_out = pictures(256, seed=11)
    with SummaryWriter(tempfile.mkdtemp()) as writer:
        for step, (batch, some) in enumerate(batches(images, labels, size=20, steps=400), 1):
            loss = cross_entropy(model(batch), some)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            writer.add_scalar("train/loss", loss.item(), step)
            if step % 25 == 0:
                model.eval()
                with torch.no_grad():
                    writer.add_scalar("val/loss", cross_entropy(model(held_out[0]), held_out[1]).item(), step)
                model.train()
                time.sleep(0.3)
