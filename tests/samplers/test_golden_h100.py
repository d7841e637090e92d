"""/metrics of the recorded H100, from the driver's C structures to the text: idle, and in the middle of its job."""

import re
import subprocess
import time
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from gpuwatch.config import Config
from gpuwatch.exporters.prometheus import Prometheus
from gpuwatch.selfstats import SelfStats
from gpuwatch.state.store import State
from tests.fake_nvml.driver import DOUBLE_BIT_ECC, GPM_METRICS, XID, h100, replay

GOLDEN = Path(__file__).parent / "golden"
JOB_PID = 3999999  # beyond what a small machine gives out, so that nobody is found by it
#: Times of now, and what is summed over time.
VOLATILE = re.compile(
    r"^(gpuwatch_(?:last_sample_timestamp_seconds|sample_duration_seconds|sample_gap_seconds|gpu_busy_seconds_total"
    r"|gpu_xid_last_timestamp_seconds)(?:\{[^}]*\})?) .*$",
    re.MULTILINE,
)


def document(run, tmp_path):
    state = State(str(tmp_path / "runs"))
    state.gpus = run.gpus
    try:
        return Prometheus(Config(), state, SelfStats(), "0.1.0", []).document()
    finally:
        state.close()


def check(name, text):
    masked = VOLATILE.sub(r"\1 VARIES", text)
    path = GOLDEN / name
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        path.write_text(masked)
        pytest.fail(f"{name} was missing and has been written: look at it, then run again")
    assert masked.splitlines() == path.read_text().splitlines()


def lint(text):
    result = subprocess.run(["promtool", "check", "metrics"], input=text.encode(), capture_output=True, timeout=30, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (0, b"", b"")
    assert list(text_string_to_metric_families(text))


def settled(run):
    """Two rounds of the dear readings (energy and processes take turns), a difference of GPM, and no news any more."""
    run.until(lambda: run.value(0, "dram_active_ratio") is not None)
    since = run.gpu(0).last_sample_monotonic_ns
    run.until(lambda: run.gpu(0).last_sample_monotonic_ns > since + 2_500_000_000)


def test_idle(sampled, tmp_path):
    run = sampled([h100()])
    settled(run)
    text = document(run, tmp_path).decode()
    check("h100_idle.txt", text)
    lint(text)


def test_in_the_middle_of_the_recorded_job(sampled, tmp_path):
    """The second at which it multiplied matrices: 98 % busy at 690 W. Played fast, then it stands still there."""
    gpu = h100()
    rows = replay(gpu, first_seconds=6.0, last_seconds=9.0, speed=10.0, pid=JOB_PID)
    assert rows[-1]["power_mw"] > 650_000
    for metric, value in zip(GPM_METRICS, (97_000, 12_500, 88_250, 35_125), strict=True):
        gpu.get(f"gpm:{metric}", value)
    run = sampled([gpu], slow_seconds=1, prepare=lambda fake: setattr(fake, "epoch", fake.epoch - 10))  # it is over by now
    run.until(lambda: run.fake.calls().get("nvmlDeviceRegisterEvents", 0) >= 1)
    gpu.report(XID, 31)
    gpu.report(DOUBLE_BIT_ECC, 1)
    run.fake.write()
    run.until(lambda: any(name == "xid_errors_total" for name, _, _ in run.gpu(0).readings(time.monotonic_ns())))
    run.until(lambda: run.value(0, "tensor_active_ratio") == 0.8825)
    settled(run)
    text = document(run, tmp_path).decode()
    check("h100_busy.txt", text)
    lint(text)


def test_twin_the_linter_finds_fault_with_other_text():
    bad = b"# TYPE gpu_power_W counter\ngpu_power_W 5\n"
    result = subprocess.run(["promtool", "check", "metrics"], input=bad, capture_output=True, timeout=30, check=False)
    assert result.returncode != 0
