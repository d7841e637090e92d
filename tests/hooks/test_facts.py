"""What a run tells once: the loader's batch size, the process's peak memory; and what a job that asks for nothing imports."""

import json
import os
import subprocess
import sys
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from tests.hooks.recording import recording

INJECT = Path(__file__).resolve().parents[2] / "hooks" / "gpuwatch_hooks" / "inject"


def test_the_batch_size_is_that_of_the_training_loader():
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    data = TensorDataset(torch.ones(24, 2))
    with recording() as session:
        next(iter(DataLoader(data, batch_size=3)))  # a validation pass that comes first, as Lightning's sanity check
        for _ in range(2):
            for (x,) in DataLoader(data, batch_size=8):
                model(x).sum().backward()
                optimizer.step()
            next(iter(DataLoader(data, batch_size=5)))
    told = {name: value for facts in session.told for name, value in facts.items()}
    assert [facts["batch_size"] for facts in session.told if "batch_size" in facts] == [8]
    assert told["peak_resident_bytes"] > 50 << 20


JOB = """
import sys, json, torch
model = torch.nn.Linear(2, 1)
optimizer = torch.optim.SGD(model.parameters(), 0.1)
for _ in range(5):
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
print(json.dumps(sorted(name for name in sys.modules if name.startswith("gpuwatch_hooks"))))
"""
UNASKED = ("amp", "keepsake", "lr_range", "lr_find", "lr_curve", "lr_schedules", "schedulers", "on_demand", "pending", "int8")


def test_a_job_that_asks_for_nothing_imports_none_of_it(tmp_path):
    environ = {name: value for name, value in os.environ.items() if not name.startswith("GPUWATCH")}
    environ |= {"GPUWATCH": "1", "PYTHONPATH": str(INJECT), "GPUWATCH_SOCKET": str(tmp_path / "nobody.sock")}
    ran = subprocess.run([sys.executable, "-c", JOB], env=environ, capture_output=True, text=True, timeout=100, check=False)
    loaded = json.loads(ran.stdout)
    assert "gpuwatch_hooks.recorder" in loaded
    assert [name for name in loaded if name.split(".")[1:2] and name.split(".")[1] in UNASKED] == []
