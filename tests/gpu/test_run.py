"""`make gpu` on a machine without a device: one sentence, and the exit status that is documented."""

import importlib.util
import json
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


@pytest.mark.slow
def test_a_dry_run_of_the_kernels_bench(tmp_path):
    """What a GPU would run, on a pretended one: no wrong name or argument is met first where a device is lent by the minute."""
    results = tmp_path / "numbers.json"
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'hooks'}", "GPUWATCH_GPU_DRY_RUN": "1"}
    command = [sys.executable, "tests/bench/kernels.py", "--device", "cuda", "--quick", "--json", str(results)]
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert ran.returncode == 0, ran.stderr
    found = json.loads(results.read_text())
    assert len(found["numbers"]) == 24
    assert all(number["value"] > 0.0 for number in found["numbers"])
    assert len(found["tables"][0]["rows"]) == 3 * 11


def test_what_a_part_had_measured_is_kept_when_its_time_is_over(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("gpu_run", ROOT / "tests/gpu/run.py")
    run = importlib.util.module_from_spec(spec)
    monkeypatch.setattr(sys, "path", list(sys.path))
    spec.loader.exec_module(run)
    script = tmp_path / "slow.py"
    script.write_text(
        "import sys, time\nfrom tests.bench.harness import Bench\n"
        "bench = Bench('slow', 'Slow')\nbench.number('first', 1.5, 'x', at_most=2)\n"
        "bench.failed('second', ValueError('out of memory'))\ntime.sleep(60)\n"
    )
    rows = run.bench("slow", [str(script)], 10, tmp_path / "slow.json")
    assert [(what, value, kept) for what, value, _, kept in rows] == [
        ("bench slow", "not done after 10 s", False),
        ("first", "1.5 x", True),
        ("second", "nan ValueError: out of memory", False),
    ]
