"""Half B, broken: the loop."""

import copy
import threading
import time

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from tests.zoo.data import batches, clusters, pictures, sums, waves
from tests.zoo.models import Recurrent, Residual, Transformer, cnn, mlp
from tests.zoo.program import DIVERGED, broken


@broken(
    "zero_grad is called once an epoch, step is called at every batch",
    expects=("gradients_not_zeroed",),
    allows=DIVERGED,
    source="PyTorch forum; TrainCheck",
)
def zero_grad_once_an_epoch():
    model = Recurrent(nn.GRU, vocabulary=0, outputs=1)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    loader = DataLoader(TensorDataset(*waves(800)), batch_size=16, shuffle=True)
    for _ in range(5):
        optimizer.zero_grad()
        for series, target in loader:
            mse_loss(model(series)[:, -1], target).backward()
            optimizer.step()


def evaluate(model, images, labels):
    """Leaves the model in eval mode: the caller forgets."""
    model.eval()
    with torch.no_grad():
        return cross_entropy(model(images), labels).item()


@broken(
    "a function that evaluates leaves the network in eval mode",
    expects=("eval_mode_training",),
    onset=81,
    source="TrainCheck; PyTorch forum",
)
def evaluation_leaves_its_mode():
    model = nn.Sequential(nn.Conv2d(1, 16, 3), Residual(16), nn.Flatten(), nn.Dropout(0.2), nn.Linear(16 * 36, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    model.train()
    for step, (images, labels) in enumerate(batches(*pictures(), steps=200), 1):
        optimizer.zero_grad()
        cross_entropy(model(images), labels).backward()
        optimizer.step()
        if step == 80:
            evaluate(model, *pictures(64, seed=9))


@torch.no_grad()
def validate(model, loader):
    return sum(cross_entropy(model(images), labels).item() for images, labels in loader) / len(loader)


@broken(
    "the validation function has no model.eval()",
    expects=("train_mode_validation",),
    onset=51,
    source="PyTorch forum; TrainCheck",
)
def validation_without_eval():
    model = cnn(dropout=0.5)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    held_out = DataLoader(TensorDataset(*pictures(128, seed=4)), batch_size=32)
    for step, (images, labels) in enumerate(batches(*pictures(), steps=260), 1):
        optimizer.zero_grad()
        cross_entropy(model(images), labels).backward()
        optimizer.step()
        if step % 50 == 0:
            validate(model, held_out)


class Skips(nn.Module):
    """Four blocks of which the loop runs three."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(16, 32)
        self.blocks = nn.ModuleList(nn.Linear(32, 32) for _ in range(4))
        self.head = nn.Linear(32, 4)

    def forward(self, x):
        x = self.first(x)
        for index in range(len(self.blocks) - 1):
            x = self.blocks[index](x.relu())
        return self.head(x.relu())


@broken(
    "an off-by-one leaves the last block out of the forward pass",
    expects=("unused_parameters",),
    source="DDP's find_unused_parameters errors",
)
def block_left_out():
    model = Skips()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    for inputs, labels in batches(*clusters(), steps=200):
        optimizer.zero_grad()
        cross_entropy(model(inputs), labels).backward()
        optimizer.step()


@broken(
    "bfloat16 weights: updates of a thousandth are rounded away",
    expects=("parameters_not_updated",),
    allows=("update_ratio_low", "loss_plateau"),
    source="TrainCheck; pure bf16 training reports",
)
def bfloat16_rounds_away():
    model = mlp(16, 64, 64, 4).to(torch.bfloat16)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-5)
    for inputs, labels in batches(*clusters(), steps=200):
        optimizer.zero_grad()
        cross_entropy(model(inputs.to(torch.bfloat16)).float(), labels).backward()
        optimizer.step()


@broken(
    "the model is copied after the optimizer was made: the copy is trained, the original is stepped",
    expects=("parameters_not_updated",),
    allows=("unused_parameters", "gradients_not_zeroed", "loss_plateau", "update_ratio_low"),
    source="accelerate issue 2665",
)
def optimizer_of_the_original():
    model = Transformer()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model = copy.deepcopy(model)
    for tokens, targets in batches(*sums(), steps=150):
        optimizer.zero_grad()
        cross_entropy(model(tokens).flatten(0, 1), targets.flatten()).backward()
        optimizer.step()


@broken(
    "rank 1 alone loads an older checkpoint in mid-run",
    expects=("replica_divergence",),
    allows=("loss_spike", "exploding_gradient", "loss_diverging"),
    onset=150,
    source="BLOOM-176B; TrainCheck",
    ranks=2,
)
def rank_loads_alone():
    dist.init_process_group("gloo")
    model = DistributedDataParallel(mlp(16, 32, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    kept = copy.deepcopy(model.state_dict())
    for step, (inputs, labels) in enumerate(batches(*clusters(), steps=400, seed=dist.get_rank()), 1):
        if step == 150 and dist.get_rank() == 1:
            model.load_state_dict(kept)
        optimizer.zero_grad()
        cross_entropy(model(inputs), labels).backward()
        optimizer.step()
        time.sleep(0.01)
    dist.destroy_process_group()


@broken(
    "plain Adam without weight decay at a high rate: the weights grow and grow",
    expects=("no_weight_decay",),
    allows=("loss_plateau", "overfitting"),
    source="origin of the project: the regularisation table",
)
def weights_grow():
    model = Recurrent(nn.LSTM, width=32)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for tokens, targets in batches(*sums(64), steps=400):
        optimizer.zero_grad()
        cross_entropy(model(tokens).flatten(0, 1), targets.flatten()).backward()
        optimizer.step()


class Tokenised(IterableDataset):
    """A stream that is tokenised while it is read."""

    def __iter__(self):
        for inputs, labels in batches(*clusters(), size=1, steps=2400):
            time.sleep(0.002)
            yield inputs[0], labels[0]


@broken(
    "one worker tokenises for a loop that is faster than it",
    expects=("data_starvation",),
    source="pytscope; Lightning issue 1216",
    waits=True,
)
def one_slow_worker():
    model = mlp(16, 64, 4)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for inputs, labels in DataLoader(Tokenised(), batch_size=8, num_workers=1):
        optimizer.zero_grad()
        cross_entropy(model(inputs), labels).backward()
        optimizer.step()


@broken(
    "a list of all outputs is searched at every step once a report is due",
    expects=("step_time_regression",),
    onset=300,
    source="SageMaker Debugger StepOutlier",
    waits=True,
)
def report_in_the_loop():
    model = cnn()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for step, (images, labels) in enumerate(batches(*pictures(), steps=560), 1):
        optimizer.zero_grad()
        cross_entropy(model(images), labels).backward()
        time.sleep(0.040 if step >= 300 else 0.006)
        optimizer.step()


@broken(
    "from one step on a thread of the training process computes statistics in pure Python and takes the interpreter's lock",
    expects=("step_time_regression",),
    onset=300,
    source="the measurements behind this project's own hooks: a busy thread costs 5 ms at each hand-over of the lock",
)
def busy_thread():
    model = mlp(16, 64, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    counted, done = [0], threading.Event()

    def count():
        while not done.is_set():
            counted[0] += 1

    for step, (inputs, labels) in enumerate(batches(*clusters(), steps=800), 1):
        if step == 300:
            threading.Thread(target=count, daemon=True).start()
        optimizer.zero_grad()
        cross_entropy(model(inputs), labels).backward()
        optimizer.step()
        time.sleep(0.001)  # a device would be waited for here
    done.set()


@broken(
    "the loader of one of two ranks reads from a slow disk",
    expects=("straggler",),
    allows=("data_starvation",),
    source="nvidia-resiliency-ext; probing",
    ranks=2,
    waits=True,
)
def slow_disk_of_one_rank():
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    model = DistributedDataParallel(cnn(norm=lambda width: nn.GroupNorm(4, width)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    for images, labels in batches(*pictures(), size=8, steps=500, seed=rank):
        time.sleep(0.030 if rank == 0 else 0.010)
        optimizer.zero_grad()
        cross_entropy(model(images), labels).backward()
        optimizer.step()
    dist.destroy_process_group()


@broken(
    "outputs are cached for a report, with their graphs, and never dropped",
    expects=("memory_leak",),
    source="PyTorch FAQ; pytorch issue 32101",
    waits=True,
)
def cache_that_grows():
    model = mlp(64, 128, 128, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.001)
    cache = {}
    for step in range(1000):
        inputs = torch.randn(128, 64)
        outputs = model(inputs)
        optimizer.zero_grad()
        mse_loss(outputs[:, 0], inputs.sum(1)).backward()
        optimizer.step()
        cache[step] = (inputs, outputs, model[0](inputs).relu())
        time.sleep(0.018)
