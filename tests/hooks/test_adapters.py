"""The framework adapters, each in one real training of its framework. Importing these takes seconds, hence `slow`."""

import math
import os
import subprocess
import sys

import pytest
import torch
from gpuwatch_hooks import wire
from gpuwatch_hooks.adapters import metrics

from gpuwatch.state.records import decode
from tests.hooks.ring_reader import RingReader

LIGHTNING = """
import sys, warnings, logging
warnings.filterwarnings("ignore")
import lightning as L
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from gpuwatch_hooks.adapters.lightning import GpuwatchCallback

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
torch.set_num_threads(1)

class Module(L.LightningModule):
    def __init__(self, width, rate):
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Linear(width, 1)

    def training_step(self, batch, index):
        loss = self.net(batch[0]).square().mean()
        self.log("train_loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch, index):
        self.log("val_loss", self.net(batch[0]).square().mean())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.hparams.rate)

torch.manual_seed(0)
data = DataLoader(TensorDataset(torch.randn(12, 4)), batch_size=4)
trainer = L.Trainer(max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
                    enable_model_summary=False, gradient_clip_val=0.5, callbacks=[GpuwatchCallback(name="lit")])
trainer.fit(Module(4, 0.05), data, data)
print({tag: value.item() for tag, value in trainer.callback_metrics.items()})
"""

TRANSFORMERS = """
import os, sys, tempfile
os.environ.update(TRANSFORMERS_OFFLINE="1", HF_HUB_OFFLINE="1")
import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments
from gpuwatch_hooks.adapters.transformers import GpuwatchCallback

torch.set_num_threads(1)
torch.manual_seed(0)
rows = torch.randint(64, (16, 8))
data = [{"input_ids": row, "labels": row} for row in rows]

class Poisoned(Trainer):
    def compute_loss(self, *args, **kwargs):
        result = super().compute_loss(*args, **kwargs)
        if self.model.training and self.state.global_step == 2:
            result = result + float("nan")  # the value alone: the gradient stays finite, and training goes on
        return result

with tempfile.TemporaryDirectory() as folder:
    arguments = TrainingArguments(
        output_dir=folder, per_device_train_batch_size=4, max_steps=4, learning_rate=1e-3, weight_decay=0.1, use_cpu=True,
        report_to=[], logging_steps=1, save_strategy="no", eval_strategy="steps", eval_steps=4, disable_tqdm=True)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_positions=8, n_embd=8, n_layer=1, n_head=2))
    trainer = Poisoned(model=model, args=arguments, train_dataset=data, eval_dataset=data, callbacks=[GpuwatchCallback()])
    trainer.train()
print(trainer.state.log_history)
"""


ACCUMULATING = """
import os, tempfile
os.environ.update(TRANSFORMERS_OFFLINE="1", HF_HUB_OFFLINE="1")
import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments
from gpuwatch_hooks.adapters.transformers import GpuwatchCallback

torch.set_num_threads(1)
torch.manual_seed(0)
data = [{"input_ids": row, "labels": row} for row in torch.randint(64, (20, 8))]
with tempfile.TemporaryDirectory() as folder:
    arguments = TrainingArguments(
        output_dir=folder, per_device_train_batch_size=4, gradient_accumulation_steps=2, num_train_epochs=2, use_cpu=True,
        report_to=[], logging_steps=1, save_strategy="no", disable_tqdm=True)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_positions=8, n_embd=8, n_layer=1, n_head=2))
    trainer = Trainer(model=model, args=arguments, train_dataset=data, callbacks=[GpuwatchCallback()])
    trainer.train()
print([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
"""


def run(script, socket_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GPUWATCH_SOCKET": str(socket_path)}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=110, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert "gpuwatch:" not in done.stderr
    return done.stdout


def facts(daemon):
    return {key: value for message in daemon.of("meta") for key, value in message["facts"].items()}


def losses(daemon):
    """The loss of each step, from the ring that the job left behind."""
    found, overwritten = RingReader(daemon.ring_fds[0]).since(0)
    assert overwritten == 0
    return [decode(kind, payload, now).values["loss"] for _, kind, payload, now in found if kind == wire.KIND_STEP]


@pytest.mark.slow
def test_lightning(make_daemon, socket_path):
    daemon = make_daemon()
    shown = eval(run(LIGHTNING, socket_path))
    assert daemon.hellos[0]["run"] == "lit"
    known = facts(daemon)
    assert (known["framework"], known["precision"], known["gradient_clip_val"]) == ("lightning", "fp32", 0.5)
    assert (known["width"], known["rate"], known["epochs"]) == (4, 0.05, 2)
    rows = [(tag, step) for tag, step, *_ in daemon.scalars()]
    assert rows == [("val_loss", 3), ("train_loss", 3), ("val_loss", 6), ("train_loss", 6)]
    last = {tag: value for tag, _, value, _ in daemon.scalars()}
    assert last == pytest.approx(shown)
    tables = [message["names"] for message in daemon.of("names") if message["table"] == "tensor"]
    assert tables[-1] == ["net.weight", "net.bias"]
    assert len(losses(daemon)) == 6


@pytest.mark.slow
def test_transformers_and_the_nan_that_its_own_log_hides(make_daemon, socket_path):
    daemon = make_daemon()
    history = eval(run(TRANSFORMERS, socket_path).splitlines()[-1], {"nan": float("nan")})
    known = facts(daemon)
    assert (known["framework"], known["model"], known["precision"]) == ("transformers", "GPT2LMHeadModel", "fp32")
    assert (known["weight_decay"], known["max_steps"]) == (0.1, 4)
    theirs = [entry["loss"] for entry in history if "loss" in entry]
    assert not any(map(math.isnan, theirs))  # this is what a user of Trainer sees
    ours = losses(daemon)
    assert [math.isnan(loss) for loss in ours] == [False, False, True, False]
    scalars = {(tag, step): value for tag, step, value, _ in daemon.scalars()}
    evaluated = next(entry for entry in history if "eval_loss" in entry)
    assert scalars["eval/loss", 4] == pytest.approx(evaluated["eval_loss"])
    assert not {tag for tag, _ in scalars} & {"train/loss", "train/grad_norm", "train/learning_rate"}
    assert scalars["train/epoch", 4] == 1.0


@pytest.mark.slow
def test_a_trainer_that_accumulates_divides_each_loss_by_the_tokens_of_the_step(make_daemon, socket_path):
    daemon = make_daemon()
    theirs = eval(run(ACCUMULATING, socket_path).splitlines()[-1])
    assert len(theirs) == 6  # an epoch is of five micro-batches: two steps of two, and one of one
    assert losses(daemon) == pytest.approx(theirs, rel=1e-4)


def test_metrics_that_are_no_numbers_stay_behind():
    told = []
    known = {"a": 1, "b": torch.tensor(2.0), "c": "text", "d": torch.zeros(2), "loss": 3.0, "e": None, "f": True}
    metrics.pass_on(lambda *row: told.append(row), known, 7, lambda tag: "x/" + tag, ("loss",))
    assert told == [("x/a", 1, 7), ("x/b", torch.tensor(2.0), 7), ("x/f", True, 7)]


def test_a_tensorboard_logger_is_known_by_its_kind():
    class TensorBoardLogger:
        pass

    class Mine(TensorBoardLogger):
        pass

    assert metrics.has_writer([object(), Mine()])
    assert not metrics.has_writer([object()])
