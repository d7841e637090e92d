"""Half A, broken: the loop does something else than its author thinks, or waits."""

import time

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset

from tests.zoo.data import batches, clusters, pictures, sums
from tests.zoo.models import Transformer, cnn, mlp
from tests.zoo.program import DIVERGED, broken


@broken(
    "zero_grad is missing",
    expects=("gradients_not_zeroed",),
    allows=DIVERGED,
    source="TrainCheck; the commonest forum answer",
)
def zero_grad_missing():
    model = mlp(16, 32, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for inputs, labels in batches(*clusters(), steps=200):
        cross_entropy(model(inputs), labels).backward()
        optimizer.step()


@broken(
    "model.eval() before the first validation, and no model.train() after it",
    expects=("eval_mode_training",),
    onset=61,
    source="TrainCheck; PyTorch forum",
)
def never_back_to_train():
    model = cnn(dropout=0.3)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    held_out = pictures(64, seed=4)
    for step, (images, labels) in enumerate(batches(*pictures(), steps=240), 1):
        optimizer.zero_grad()
        cross_entropy(model(images), labels).backward()
        optimizer.step()
        if step % 60 == 0:
            model.eval()
            with torch.no_grad():
                cross_entropy(model(held_out[0]), held_out[1]).item()


@broken(
    "validation runs in train mode: dropout is on, and BatchNorm learns from held-out data",
    expects=("train_mode_validation",),
    onset=41,
    source="TrainCheck; PyTorch forum",
)
def validates_in_train_mode():
    model = cnn(dropout=0.3)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    held_out = pictures(128, seed=4)
    for step, (images, labels) in enumerate(batches(*pictures(), steps=240), 1):
        optimizer.zero_grad()
        cross_entropy(model(images), labels).backward()
        optimizer.step()
        if step % 40 == 0:
            with torch.no_grad():
                for batch, some in zip(held_out[0].split(32), held_out[1].split(32), strict=True):
                    cross_entropy(model(batch), some).item()


class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk, self.head, self.auxiliary = mlp(16, 32, 32), nn.Linear(32, 4), nn.Linear(32, 4)

    def forward(self, x):
        return self.head(self.trunk(x).relu())


@broken(
    "an auxiliary head is built, handed to the optimizer, and never used",
    expects=("unused_parameters",),
    source="DDP's find_unused_parameters errors",
)
def head_never_used():
    model = TwoHeads()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for inputs, labels in batches(*clusters(), steps=200):
        optimizer.zero_grad()
        cross_entropy(model(inputs), labels).backward()
        optimizer.step()


@broken(
    "the optimizer holds a layer that was replaced in the model, and not the one that took its place",
    expects=("parameters_not_updated",),
    allows=("unused_parameters", "gradients_not_zeroed", "loss_plateau"),
    source="accelerate issue 2665; TrainCheck",
)
def layer_replaced_after_optimizer():
    model = mlp(16, 32, 32, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    model[4] = nn.Linear(32, 4)
    for inputs, labels in batches(*clusters(), steps=200):
        optimizer.zero_grad()
        cross_entropy(model(inputs), labels).backward()
        optimizer.step()


@broken(
    "the model is loaded anew after the optimizer was made: the optimizer steps tensors that nobody uses",
    expects=("parameters_not_updated",),
    allows=("unused_parameters", "gradients_not_zeroed", "loss_plateau", "update_ratio_low"),
    source="accelerate issue 2665; TrainCheck",
)
def model_loaded_after_optimizer():
    model = cnn()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    state = model.state_dict()
    model = cnn()
    model.load_state_dict(state)
    for images, labels in batches(*pictures(), steps=150):
        optimizer.zero_grad()
        cross_entropy(model(images), labels).backward()
        optimizer.step()


@broken(
    "the learning rate is 0: the schedule multiplies by an integer division",
    expects=("parameters_not_updated",),
    allows=("loss_plateau", "update_ratio_low"),
    source="PyTorch forum on LambdaLR",
)
def learning_rate_zero():
    model = Transformer()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: (step + 1) // 1000)
    for tokens, targets in batches(*sums(), steps=250):
        optimizer.zero_grad()
        cross_entropy(model(tokens).flatten(0, 1), targets.flatten()).backward()
        optimizer.step()
        schedule.step()


@broken(
    "two ranks train without DistributedDataParallel, each its own model",
    expects=("replica_divergence",),
    source="TrainCheck; BLOOM-176B",
    ranks=2,
)
def ranks_on_their_own():
    dist.init_process_group("gloo")
    model = mlp(16, 32, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for inputs, labels in batches(*clusters(), steps=300, seed=dist.get_rank()):
        optimizer.zero_grad()
        cross_entropy(model(inputs), labels).backward()
        optimizer.step()
        time.sleep(0.004)
    dist.destroy_process_group()


@broken(
    "a large model on little data, AdamW told weight_decay=0",
    expects=("no_weight_decay",),
    allows=("loss_plateau",),
    source="origin of the project: the regularisation table",
)
def weight_decay_forgotten():
    model = mlp(16, 64, 64, 4)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    for inputs, labels in batches(*clusters(512), steps=500):
        optimizer.zero_grad()
        cross_entropy(model(inputs), labels).backward()
        optimizer.step()


class Slow(Dataset):
    """Each item takes `seconds` to read."""

    def __init__(self, seconds, rows=2000):
        self.seconds = seconds
        self.inputs, self.labels = clusters(rows)

    def __len__(self):
        return len(self.inputs)

    def __getitem__(self, index):
        time.sleep(self.seconds)
        return self.inputs[index], self.labels[index]


@broken(
    "every item is decoded in the training process",
    expects=("data_starvation",),
    allows=("amp_unused",),
    source="pytscope; SageMaker Debugger IOBottleneck; gsplat issue 1058",
    waits=True,
)
def slow_loader():
    model = mlp(16, 64, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    loader = DataLoader(Slow(0.001), batch_size=8, shuffle=True)
    for inputs, labels in loader:
        optimizer.zero_grad()
        cross_entropy(model(inputs), labels).backward()
        optimizer.step()


@broken(
    "from one step on each step takes four times as long: a debug check was left on",
    expects=("step_time_regression",),
    onset=250,
    source="SageMaker Debugger StepOutlier",
    waits=True,
)
def steps_become_slow():
    model = mlp(16, 32, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for step, (inputs, labels) in enumerate(batches(*clusters(), steps=500), 1):
        optimizer.zero_grad()
        cross_entropy(model(inputs), labels).backward()
        optimizer.step()
        time.sleep(0.040 if step >= 250 else 0.010)


@broken(
    "one of two ranks is slower than the other, which waits for it",
    expects=("straggler",),
    source="nvidia-resiliency-ext; SageMaker Debugger LoadBalancing",
    ranks=2,
    waits=True,
)
def slow_rank():
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    model = DistributedDataParallel(mlp(16, 32, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for inputs, labels in batches(*clusters(), steps=800, seed=rank):
        time.sleep(0.020 if rank else 0.005)
        optimizer.zero_grad()
        cross_entropy(model(inputs), labels).backward()
        optimizer.step()
    dist.destroy_process_group()


@broken(
    "losses are kept with their graphs: each step adds megabytes",
    expects=("memory_leak",),
    source="PyTorch FAQ: total_loss += loss",
    waits=True,
)
def losses_with_graphs():
    model = mlp(64, 128, 128, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.001)
    kept = []
    for _ in range(1000):
        inputs = torch.randn(128, 64)
        loss = mse_loss(model(inputs)[:, 0], inputs.sum(1))
        optimizer.zero_grad()
        loss.backward(retain_graph=True)
        optimizer.step()
        kept.append(loss)
        time.sleep(0.018)
