"""Half A, broken: numbers that are not finite, that explode, vanish, die, or go the wrong way."""

import time

import gpuwatch_hooks as gpuwatch
import torch
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss, one_hot

from tests.zoo.data import batches, clusters, pictures, sums, waves
from tests.zoo.models import Recurrent, Transformer, cnn, mlp
from tests.zoo.program import DIVERGED, RUINED, broken


@broken(
    "log(0): the cross-entropy is written by hand, and a far-off batch makes a probability 0",
    expects=("nonfinite_loss",),
    allows=(*RUINED, "loss_spike", "exploding_gradient", "dead_layer", "update_ratio_high"),
    onset=120,
    source="DeepLocalize; forum threads on log(softmax)",
)
def log_of_zero():
    model = mlp(16, 32, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for step, (inputs, labels) in enumerate(batches(*clusters(), steps=200), 1):
        probability = model(inputs * (100.0 if step == 120 else 1.0)).softmax(1)
        loss = -(probability.log() * one_hot(labels, 4)).sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@broken(
    "sqrt'(0): the distance of a pair of equal points, whose loss is finite and whose gradient is not",
    expects=("nonfinite_gradient", "nonfinite_loss"),
    allows=RUINED,
    onset=100,
    source="pytorch issues on norm and cdist at 0",
)
def distance_of_equal_points():
    model = mlp(16, 32, 8)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, weight_decay=1e-5)
    inputs, labels = clusters()
    for step, (a, b, la, lb) in enumerate(batches(inputs, inputs.flip(0), labels, labels.flip(0), steps=150), 1):
        if step == 100:
            b[0], lb[0] = a[0], la[0]
        distance = (model(a) - model(b)).square().sum(1).sqrt()
        loss = torch.where(la == lb, distance, (2.0 - distance).clamp(min=0)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@broken(
    "0/0: each batch is divided by its own standard deviation, and one is constant",
    expects=("nonfinite_loss", "nonfinite_gradient"),
    allows=RUINED,
    onset=80,
    source="DeepLocalize; AUTOTRAINER",
)
def constant_batch():
    model = mlp(16, 32, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    inputs, _ = clusters()
    for step, (batch,) in enumerate(batches(inputs, steps=140), 1):
        if step == 80:
            batch.fill_(1.0)
        scaled = (batch - batch.mean(0)) / batch.std(0)
        optimizer.zero_grad()
        mse_loss(model(scaled)[:, 0], scaled.sum(1)).backward()
        optimizer.step()


@broken(
    "one element of one input is infinite",
    expects=("nonfinite_loss",),
    allows=RUINED,
    onset=150,
    source="SageMaker Debugger ExplodingTensor; forum threads on bad data",
)
def infinite_input():
    model = Recurrent(nn.GRU, vocabulary=0, outputs=1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step, (series, target) in enumerate(batches(*waves(), steps=200), 1):
        if step == 150:
            series[0, 3] = float("inf")
        optimizer.zero_grad()
        mse_loss(model(series)[:, -1], target).backward()
        optimizer.step()


@broken(
    "a schedule error multiplies the learning rate by 100",
    expects=("update_ratio_high",),
    allows=DIVERGED,
    onset=200,
    source="reference test of section 2.3; PaLM's spikes",
)
def learning_rate_times_100():
    model = cnn()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    for step, (images, labels) in enumerate(batches(*pictures(), steps=300), 1):
        if step == 200:
            optimizer.param_groups[0]["lr"] *= 100
        optimizer.zero_grad()
        cross_entropy(model(images), labels).backward()
        optimizer.step()


@broken(
    "weight decay of 1.0 at a learning rate of 0.5: each step halves the weights",
    expects=("update_ratio_high",),
    allows=DIVERGED,
    source="forum threads on weight decay that is out of scale",
)
def weight_decay_too_large():
    model = mlp(16, 64, 64, 4)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.5, weight_decay=1.0)
    for inputs, labels in batches(*clusters(), steps=150):
        optimizer.zero_grad()
        cross_entropy(model(inputs), labels).backward()
        optimizer.step()


@broken(
    "a recurrent network without clipping meets sequences four times as long",
    expects=("exploding_gradient",),
    allows=DIVERGED,
    onset=200,
    source="Pascanu 2013; AUTOTRAINER",
)
def rnn_without_clipping():
    model = Recurrent(nn.RNN, vocabulary=0, outputs=1, nonlinearity="relu")
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    with torch.no_grad():
        model.cell.weight_hh_l0.copy_(1.05 * torch.eye(32))
    series, targets = waves(256, 80)
    for step, (inputs, target) in enumerate(batches(series, targets, steps=260), 1):
        optimizer.zero_grad()
        mse_loss(model(inputs if step >= 200 else inputs[:, -20:])[:, -1], target).backward()
        optimizer.step()


@broken(
    "the normalisation is lost: from one step on the inputs are 0 to 255 instead of 0 to 1",
    expects=("exploding_gradient", "loss_spike"),
    allows=DIVERGED,
    onset=180,
    source="UMLAUT (input not normalised); SageMaker Debugger CheckInputImages",
)
def normalisation_lost():
    model = mlp(64, 64, 4)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    images, labels = pictures(512)
    for step, (batch, some) in enumerate(batches(images.flatten(1), labels, steps=240), 1):
        optimizer.zero_grad()
        cross_entropy(model(batch * (255.0 if step >= 180 else 1.0)), some).backward()
        optimizer.step()


@broken(
    "twelve sigmoid layers without normalisation",
    expects=("vanishing_gradient",),
    allows=("loss_plateau", "update_ratio_low"),
    source="AUTOTRAINER; SageMaker Debugger VanishingGradient",
)
def sigmoid_stack():
    model = mlp(16, *[32] * 12, 4, activation=nn.Sigmoid)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for inputs, labels in batches(*clusters(), steps=400):
        optimizer.zero_grad()
        cross_entropy(model(inputs), labels).backward()
        optimizer.step()


@broken(
    "all biases of a ReLU layer begin at -20: it never fires",
    expects=("dead_layer",),
    allows=("loss_plateau", "vanishing_gradient", "parameters_not_updated", "update_ratio_low"),
    source="keras issue 7057; SageMaker Debugger DeadRelu; AUTOTRAINER dying ReLU",
)
def dead_relu():
    model = mlp(16, 32, 32, 32, 4)
    nn.init.constant_(model[2].bias, -20.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for inputs, labels in batches(*clusters(), steps=300):
        optimizer.zero_grad()
        cross_entropy(model(inputs), labels).backward()
        optimizer.step()


@broken(
    "one batch has all its labels wrong",
    expects=("loss_spike",),
    allows=("exploding_gradient",),
    onset=300,
    source="OLMo and PaLM reports: bad batches",
)
def one_bad_batch():
    model = cnn()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for step, (images, labels) in enumerate(batches(*pictures(512), steps=360), 1):
        optimizer.zero_grad()
        cross_entropy(model(images), (labels + 2) % 4 if step == 300 else labels).backward()
        optimizer.step()


@broken(
    "labels are shuffled against their inputs from the second shard of the data on",
    expects=("loss_diverging",),
    allows=DIVERGED,
    onset=250,
    source="reference test of section 2.3; TrainCheck",
)
def labels_shuffled():
    model = mlp(16, 64, 64, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for step, (inputs, labels) in enumerate(batches(*clusters(), steps=400), 1):
        optimizer.zero_grad()
        cross_entropy(model(inputs), labels[torch.randperm(len(labels))] if step >= 250 else labels).backward()
        optimizer.step()


@broken(
    "the sign of the loss is wrong after a refactoring: it is maximised",
    expects=("loss_diverging",),
    allows=DIVERGED,
    onset=200,
    source="UMLAUT; forum threads on gradient ascent",
)
def maximised():
    model = Transformer()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for step, (tokens, targets) in enumerate(batches(*sums(1024), steps=300), 1):
        loss = cross_entropy(model(tokens).flatten(0, 1), targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        for parameter in model.parameters() if step >= 200 else ():
            parameter.grad.neg_()
        optimizer.step()


@broken(
    "the learning rate is a thousand times too small: the loss stands still",
    expects=("loss_plateau", "update_ratio_low"),
    source="AUTOTRAINER slow convergence; SageMaker Debugger LossNotDecreasing",
)
def learning_rate_too_small():
    model = mlp(16, 32, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-8)
    for inputs, labels in batches(*clusters(), steps=1500):
        optimizer.zero_grad()
        cross_entropy(model(inputs), labels).backward()
        optimizer.step()


@broken(
    "the loss of a new shard is summed instead of averaged: gradients grow tenfold under Adam's old second moment",
    expects=("adam_second_moment",),
    allows=DIVERGED,
    onset=250,
    source="StableAdamW (arXiv 2304.13013)",
)
def second_moment_lags():
    model = mlp(16, 64, 64, 4)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, betas=(0.9, 0.999))
    for step, (inputs, labels) in enumerate(batches(*clusters(), steps=320), 1):
        optimizer.zero_grad()
        (cross_entropy(model(inputs), labels) * (32.0 if step >= 250 else 1.0)).backward()
        optimizer.step()


@broken(
    "forty examples with random labels are learned by heart",
    expects=("overfitting",),
    allows=("loss_plateau",),
    onset=60,
    source="Prechelt 1998; SageMaker Debugger Overfit",
)
def forty_examples():
    model = mlp(16, 128, 128, 4)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    inputs, labels = clusters(40, noise=4.0)
    held_out = clusters(200, noise=4.0, seed=7)
    for step, (batch, some) in enumerate(batches(inputs, labels, size=20, steps=500), 1):
        loss = cross_entropy(model(batch), some)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 20 == 0:
            model.eval()
            with torch.no_grad():
                gpuwatch.log("Loss/val", cross_entropy(model(held_out[0]), held_out[1]).item(), step)
                gpuwatch.log("Loss/train", loss.item(), step)
            model.train()
            time.sleep(0.15)
