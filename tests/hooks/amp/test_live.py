"""The probe in an unmodified job: what is dropped leaves no trace, to the bit; what it refuses, and why."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from gpuwatch_hooks.amp.plan import Plan

ROOT = Path(__file__).resolve().parents[3]
LOOP = ROOT / "tests" / "hooks" / "lr_loop.py"
FIRST, ROUNDS, BLOCK, SEED = 6, 2, 2, 5
REQUEST = {"first_step": FIRST, "rounds": ROUNDS, "block_steps": BLOCK, "seed": SEED}
BATCHES = 30


def job(tmp_path, kind, *arguments, request=None, script=LOOP):
    """(batch number -> the rest of its line, facts of the run, stderr) of a job under a daemon of its own."""
    tmp_path = Path(tempfile.mkdtemp(dir=tmp_path))
    environ = {name: value for name, value in os.environ.items() if not name.startswith("GPUWATCH")} | {"OMP_NUM_THREADS": "1"}
    if request is not None:
        environ["GPUWATCH_AMP_PROBE"] = json.dumps(request)
    run = [sys.executable, "-m", "gpuwatch", "run", "--quiet", "--name", kind, "--logdir", str(tmp_path / "runs"), "--"]
    command = [*(run if request is not None else []), sys.executable, str(script), kind, "--batches", str(BATCHES), *arguments]
    ran = subprocess.run(command, env=environ, cwd=tmp_path, capture_output=True, text=True, timeout=110, check=False)
    assert ran.returncode == 0, ran.stderr
    summary = tmp_path / "runs" / kind / "run.json"
    facts = json.loads(summary.read_text())["facts"] if summary.exists() else {}
    return {int(line.split()[0]): line for line in ran.stdout.splitlines()}, facts, ran.stderr


def dropped_batches():
    """Those that the probe computes in the other precision; iteration n of the hooks is batch n - 1."""
    plan = Plan(["float32", "bfloat16"], ROUNDS, BLOCK, SEED)
    return [FIRST - 1 + step for step in range(plan.steps) if plan.variant_of(step) == 1]


@pytest.mark.parametrize("kind", ["plain", "accumulating"])
def test_a_float32_job_goes_on_as_if_the_dropped_batches_had_not_been_there(tmp_path, kind):
    probed, facts, _ = job(tmp_path, kind, request=REQUEST)
    assert facts["amp_probe_failed"] == ""
    assert facts["amp_variant"] == "bfloat16"
    assert facts["amp_probe_dropped_batches"] == len(dropped_batches()) == ROUNDS * (BLOCK + 2)
    assert facts["amp_speedup_low"] <= facts["amp_speedup_ratio"] <= facts["amp_speedup_high"]
    assert facts["precision"] == "fp32", "the job's own, not the probe's"
    plain, _, _ = job(tmp_path, kind, "--without", ",".join(map(str, dropped_batches())))
    assert plain == {number: line for number, line in probed.items() if number in plain}
    assert len(plain) == BATCHES - len(dropped_batches())


def test_twin_the_dropped_batches_were_really_computed_in_the_other_precision(tmp_path):
    probed, _, _ = job(tmp_path, "plain", request=REQUEST)
    plain, _, _ = job(tmp_path, "plain")
    first = dropped_batches()[0]
    assert probed[first - 1] == plain[first - 1]
    assert probed[first] != plain[first]


def test_a_job_under_autocast_applies_its_float32_steps_and_drops_them_when_told(tmp_path):
    plan = Plan(["float32", "bfloat16"], ROUNDS, BLOCK, SEED)
    foreign = [FIRST - 1 + step for step in range(plan.steps) if plan.variant_of(step) == 0]
    _, facts, _ = job(tmp_path, "amp", request=REQUEST)
    assert facts["amp_probe_failed"] == ""
    assert facts["amp_probe_dropped_batches"] == 0
    probed, facts, _ = job(tmp_path, "amp", request={**REQUEST, "drop": True})
    assert facts["amp_probe_dropped_batches"] == len(foreign)
    plain, _, _ = job(tmp_path, "amp", "--without", ",".join(map(str, foreign)))
    assert plain == {number: line for number, line in probed.items() if number in plain}, "the scaler's growth included"


ONLY_FLOAT32 = """
import sys, torch
from torch import nn
class Kernel(nn.Module):
    def __init__(self):
        super().__init__(); self.inner = nn.Linear(4, 4)
    def forward(self, x):
        y = self.inner(x)
        if y.dtype != torch.float32: raise TypeError("this kernel knows float32 only")
        return y
model = Kernel(); optimizer = torch.optim.{optimizer}(model.parameters(), 0.01)
for number in range(30):
    def closure():
        optimizer.zero_grad(); loss = {call}(torch.ones(2, 4)).square().mean(); loss.backward(); return loss
    optimizer.step(closure) if "{optimizer}" == "LBFGS" else (closure(), optimizer.step())
    print(number)
"""


@pytest.mark.parametrize(
    ("optimizer", "call", "why"),
    [
        ("SGD", "model", "its forward or backward pass fails in bfloat16 (TypeError: this kernel knows float32 only)"),
        ("SGD", "model.inner.forward", "does not call the model's forward pass"),
        ("LBFGS", "model", "computes its gradients in a closure"),
    ],
)
def test_what_would_harm_the_job_is_refused_with_the_reason(tmp_path, optimizer, call, why):
    script = tmp_path / "job.py"
    script.write_text(ONLY_FLOAT32.replace("{optimizer}", optimizer).replace("{call}", call))
    lines, facts, stderr = job(tmp_path, "plain", request=REQUEST, script=script)
    assert why in facts["amp_probe_failed"]
    assert "amp_speedup_ratio" not in facts
    assert len(lines) == 30, "and the job goes on"
    assert "Traceback" not in stderr


LIGHTNING = """
import logging, sys, warnings
import lightning as L, torch
from torch import nn
from torch.utils.data import DataLoader
warnings.filterwarnings("ignore")
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
without = set(map(int, sys.argv[-1].split(","))) if "--without" in sys.argv else set()
generator = torch.Generator().manual_seed(1)
data = [(n, torch.randn(8, 6, generator=generator)) for n in range(30)]
torch.manual_seed(0)
class Task(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.2), nn.Linear(8, 1))
    def training_step(self, batch, _index):
        self.number, inputs = batch
        loss = self.loss = nn.functional.mse_loss(self.net(inputs), inputs.sum(1, keepdim=True))
        return loss
    def on_train_batch_end(self, *_):
        total = sum(value.double().sum().item() for value in self.net.state_dict().values())
        print(int(self.number), self.loss.item(), total, flush=True)
    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.01)
trainer = L.Trainer(max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
                    enable_model_summary=False)
trainer.fit(Task(), DataLoader([one for one in data if one[0] not in without], batch_size=None))
"""


@pytest.mark.slow
def test_a_lightning_module_whose_own_forward_is_never_called_is_probed(tmp_path):
    script = tmp_path / "job.py"
    script.write_text(LIGHTNING)
    probed, facts, _ = job(tmp_path, "plain", request=REQUEST, script=script)
    assert facts["amp_probe_failed"] == ""
    assert facts["amp_probe_dropped_batches"] == len(dropped_batches())
    plain, _, _ = job(tmp_path, "plain", "--without", ",".join(map(str, dropped_batches())), script=script)
    kept = {number: line for number, line in probed.items() if number in plain}
    assert plain == kept, "to the bit"
    assert len(plain) == BATCHES - len(dropped_batches())
