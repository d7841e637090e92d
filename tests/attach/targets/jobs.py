"""Kinds of training, one after the other: `jobs.py KIND...`. Each optimizer step ends in `step_done`, which answers commands.

go N    takes N more steps and holds; answered by {"step": ...} once it holds; while it holds the main thread comes by bytecode
next    the next kind begins; answered, as the first one is, by "ready" after its first step
"""

import contextlib
import json
import os
import select
import sys
import tempfile

import torch
from torch import nn

steps, hold_at = 0, None


class NextKind(BaseException):
    """Leaves whatever loop it is in."""


def step_done():
    global steps, hold_at  # noqa: PLW0603  # a user's script
    steps += 1
    if steps == 1:
        print("ready", flush=True)
    while hold_at is None or steps >= hold_at:
        if hold_at == steps:
            print(json.dumps({"step": steps}), flush=True)
            hold_at = -1
        if select.select([sys.stdin], [], [], 0.02)[0]:
            word, _, number = sys.stdin.readline().strip().partition(" ")
            if word == "next":
                steps, hold_at = 0, None
                raise NextKind
            if not word:
                sys.exit()
            hold_at = steps + int(number)
        elif hold_at is None:
            return


def network():
    return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 2))


def loss_of(model):
    return model(torch.randn(4, 8)).pow(2).mean()


def loop(model, optimizer, forward=loss_of, backward=torch.Tensor.backward, step=None):
    step = step or optimizer.step
    while True:
        optimizer.zero_grad()
        backward(forward(model))
        step()
        step_done()


def plain():
    model = network()
    loop(model, torch.optim.Adam(model.parameters()))


def lbfgs():
    model = network()
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=3)

    def closure():
        optimizer.zero_grad()
        loss = loss_of(model)
        loss.backward()
        return loss

    while True:
        optimizer.step(closure)
        step_done()


def in_backward():
    model = network()
    optimizers = {p: torch.optim.SGD([p], lr=0.1) for p in model.parameters()}

    def at_once(parameter):
        optimizers[parameter].step()
        optimizers[parameter].zero_grad()

    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(at_once)
    while True:
        loss_of(model).backward()
        step_done()


def super_step():
    class Mine(torch.optim.SGD):
        def step(self, closure=None):
            return super().step(closure)

    model = network()
    loop(model, Mine(model.parameters(), lr=0.1))


def foreign_optimizer():
    class Own:
        def __init__(self, parameters):
            self.parameters = list(parameters)

        def zero_grad(self):
            for parameter in self.parameters:
                parameter.grad = None

        @torch.no_grad()
        def step(self):
            for parameter in self.parameters:
                parameter.sub_(0.1 * parameter.grad)

    model = network()
    loop(model, Own(model.parameters()))


def _group():
    if torch.distributed.is_initialized():
        return
    path = os.path.join(tempfile.mkdtemp(), "store")
    torch.distributed.init_process_group("gloo", init_method=f"file://{path}", rank=0, world_size=1)


def ddp():
    _group()
    model = nn.parallel.DistributedDataParallel(network())
    loop(model, torch.optim.SGD(model.parameters(), lr=0.1))


def fsdp1():
    from torch.distributed.fsdp import FullyShardedDataParallel

    _group()
    model = FullyShardedDataParallel(network(), device_id=torch.device("cpu"))
    loop(model, torch.optim.SGD(model.parameters(), lr=0.1))


def fsdp2():
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    _group()
    model = fully_shard(network(), mesh=init_device_mesh("cpu", (1,)))
    loop(model, torch.optim.SGD(model.parameters(), lr=0.1))


def compiled_model():
    model = network()
    forward = torch.compile(loss_of, backend="aot_eager")
    loop(model, torch.optim.SGD(model.parameters(), lr=0.1), forward=forward)


def compiled_optimizer():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loop(model, optimizer, step=torch.compile(optimizer.step, backend="eager"))


def compiled_step():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    @torch.compile(backend="eager")
    def whole():
        optimizer.zero_grad()
        loss_of(model).backward()
        optimizer.step()

    while True:
        whole()
        step_done()


def accelerate():
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    plain_model = network()
    model, optimizer = accelerator.prepare(plain_model, torch.optim.SGD(plain_model.parameters(), lr=0.1))
    loop(model, optimizer, backward=accelerator.backward)


def lightning():
    import lightning

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = network()

        def training_step(self, batch, _):
            return self.net(batch[0]).pow(2).mean()

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters())

        def on_train_batch_end(self, *_):
            step_done()

    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.randn(64, 8)), batch_size=4)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    lightning.Trainer(max_epochs=-1, accelerator="cpu", **quiet).fit(Module(), data)


def transformers():
    from transformers import Trainer, TrainerCallback, TrainingArguments

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = network()

        def forward(self, x):
            return {"loss": self.net(x).pow(2).mean()}

    class AtStep(TrainerCallback):
        def on_step_end(self, *_, **__):
            step_done()

    arguments = TrainingArguments(tempfile.mkdtemp(), max_steps=10**6, report_to=[], save_strategy="no", use_cpu=True)
    data = [{"x": torch.randn(8)} for _ in range(64)]
    Trainer(Model(), arguments, train_dataset=data, callbacks=[AtStep()]).train()


if __name__ == "__main__":
    torch.manual_seed(0)
    torch.set_num_threads(1)
    for kind in sys.argv[1:]:
        with contextlib.suppress(NextKind):
            globals()[kind]()
