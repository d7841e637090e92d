"""`make gpu` on a machine without a device: one sentence, and the exit status that is documented."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(("arguments", "status"), [([], 0), (["--require"], 1)])
def test_without_a_device(arguments, status):
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    ran = subprocess.run(
        [sys.executable, "tests/gpu/run.py", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (ran.returncode, ran.stdout, ran.stderr) == (status, "Nothing was run: there is no CUDA device here.\n", "")
