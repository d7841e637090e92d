"""The rules about GPUs and the daemon itself: each finds its fault, closes again, and spares its neighbours."""

from __future__ import annotations

import pytest

from gpuwatch.detectors.moment import Component
from tests.detectors.around import Around


# ------------------------------------------------------------------------------------------------------------- device
def test_a_lost_gpu(around: Around) -> None:
    around.play(5, up=False)
    finding = around.only("gpu_lost")
    assert (finding.severity, "GPU is lost" in finding.summary) == ("critical", True)
    around.play(5)
    assert finding.state == "closed"


def test_a_sampler_that_stands_still_loses_no_gpu(around: Around) -> None:
    around.play(10, up=False, sampler="paused")
    around.play(3, up=False)  # a driver that is reloaded
    around.play(5)
    assert around.simulation.opened == []


@pytest.mark.parametrize(("xid", "severity"), [("79", "critical"), ("94", "warning"), ("31", "info")])
def test_xids(around: Around, xid: str, severity: str) -> None:
    key = ("xid_errors_total", (("xid", xid),))
    around.gpu[key] = around.gpu.get(key, 0.0) + 1.0
    around.play(5)
    finding = around.only("gpu_xid")
    assert finding.severity == severity
    assert f"Xid {xid}" in finding.summary
    around.play(300)
    assert finding.state == "closed"


def test_errors_from_before_the_run_are_not_its_own() -> None:
    around = Around()  # its GPU has an Xid 31 and two uncorrected errors already
    around.play(50)
    assert around.simulation.opened == []


def test_memory_errors(around: Around) -> None:
    around.add("ecc_errors_total", 3.0, "uncorrected")
    around.play(5)
    finding = around.only("gpu_ecc")
    assert (finding.severity, finding.value) == ("critical", 3.0)
    around.play(300)
    assert finding.state == "closed"


@pytest.mark.parametrize(
    ("reason", "share", "severity"),
    [
        ("hardware_thermal", 0.3, "warning"),
        ("hardware_thermal", 0.05, ""),
        ("software_thermal", 0.7, "info"),
        ("software_thermal", 0.3, ""),
        ("power_cap", 1.0, ""),
    ],
)
def test_throttling(around: Around, reason: str, share: float, severity: str) -> None:
    for _ in range(70):
        around.add("throttled_seconds_total", share, reason)
        around.play(1)
    assert [finding.severity for finding in around.simulation.opened] == ([severity] if severity else [])
    around.play(130)
    assert all(finding.state == "closed" for finding in around.simulation.opened)


def test_a_row_remap_is_a_warning_and_a_failed_one_critical(around: Around) -> None:
    around.play(2, gpu={"row_remap_pending": 1.0})
    finding = around.only("gpu_row_remap")
    assert finding.severity == "warning"
    around.play(2, gpu={"row_remap_failure": 1.0})
    assert finding.severity == "critical"
    around.play(20, gpu={"row_remap_pending": 0.0, "row_remap_failure": 0.0})
    assert finding.state == "closed"


def test_tensor_cores_that_idle_under_float32(around: Around) -> None:
    idle = {"tensor_active_ratio": 0.0}
    around.play(130, gpu=idle, facts={"precision": "fp32"})
    finding = around.only("amp_unused")
    assert finding.severity == "info"
    around.play(30, gpu={"tensor_active_ratio": 0.4}, facts={"precision": "fp32"})
    assert finding.state == "closed"


@pytest.mark.parametrize(
    ("gpu", "precision"),
    [({"tensor_active_ratio": 0.2}, "fp32"), ({"tensor_active_ratio": 0.0}, "bf16"), ({"tensor_active_ratio": 0.0}, "fp64")],
)
def test_tensor_cores_that_work_or_need_not(around: Around, gpu: dict, precision: str) -> None:
    around.play(200, gpu=gpu, facts={"precision": precision})
    assert around.simulation.opened == []


def test_autocast_that_was_measured_to_bring_nothing(around: Around) -> None:
    facts = {"precision": "bf16", "amp_speedup_ratio": 0.98, "amp_speedup_high": 1.01, "amp_memory_saving_ratio": 0.4}
    around.play(5, facts=facts)
    finding = around.only("amp_no_speedup")
    assert (finding.severity, finding.value) == ("info", 1.01)
    assert "saves 40% of the memory" in finding.summary
    around.play(60, facts={**facts, "amp_speedup_ratio": 1.4, "amp_speedup_high": 1.5})
    assert finding.state == "closed"


@pytest.mark.parametrize(
    "facts",
    [
        {"precision": "bf16", "amp_speedup_ratio": 1.02, "amp_speedup_high": 1.2},
        {"precision": "fp32", "amp_speedup_ratio": 0.9, "amp_speedup_high": 0.95},
        {"precision": "bf16"},
        {"precision": "bf16", "amp_speedup_ratio": "", "amp_speedup_high": 0.5},
    ],
)
def test_autocast_that_helps_may_help_is_not_used_or_was_not_measured(around: Around, facts: dict) -> None:
    around.play(20, facts=facts)
    assert around.simulation.opened == []


def test_a_gpu_without_tensor_cores_or_without_gpm_says_nothing(around: Around) -> None:
    del around.gpu["tensor_active_ratio", ()]
    around.play(200, facts={"precision": "fp32"})
    assert around.simulation.opened == []


# --------------------------------------------------------------------------------------------------------- the daemon
def test_a_journal_that_is_paused(around: Around) -> None:
    paused = {"journal": Component(False, "paused for 1 runs: ENOSPC")}
    around.play(5, components=paused)
    finding = around.only("exporter_paused")
    assert "ENOSPC" in finding.summary
    around.play(5)
    assert finding.state == "closed"


@pytest.mark.parametrize("change", [{"sampler": "failing"}, {"components": {"host": Component(False, "no sign of life")}}])
def test_samplers_that_get_nothing(around: Around, change: dict) -> None:
    around.play(15, **change)
    finding = around.only("sampler_stuck")
    around.play(5)
    assert finding.state == "closed"


def test_a_part_that_has_not_begun_and_a_node_without_a_driver(around: Around) -> None:
    around.play(
        60, components={"tensorboard": Component(False, ""), "nvml": Component(False, "")}, sampler="absent", devices=()
    )
    assert around.simulation.opened == []
