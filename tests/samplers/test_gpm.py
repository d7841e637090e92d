"""GPM: the activity between two samples of the counters."""

import pytest

from tests.fake_nvml.driver import GPM_METRICS, h100, mig_h100

NAMES = ("sm_active_ratio", "sm_occupancy_ratio", "tensor_active_ratio", "dram_active_ratio")


def gpm(gpu, *thousandths_of_a_percent):
    for metric, value in zip(GPM_METRICS, thousandths_of_a_percent, strict=True):
        gpu.get(f"gpm:{metric}", value)


def values(run, label=0):
    return [run.value(label, name) for name in NAMES]


def test_the_four_ratios(sampled):
    gpu = h100()
    gpm(gpu, 73_500, 41_250, 62_000, 8_125)
    run = sampled([gpu], dear_seconds=0.5)
    run.until(lambda: None not in values(run))
    assert values(run) == pytest.approx([0.735, 0.4125, 0.62, 0.08125])


def test_it_is_the_mean_of_the_interval_and_not_of_the_moment(sampled):
    """Tensor cores busy for 0.3 of each half second: a moment would say 0 or 1, the interval says 0.3."""
    gpu = h100()
    gpm(gpu, 0, 0, 0, 0)
    gpu.lines = [line for line in gpu.lines if not line.startswith("get gpm:5 ")]
    for half in range(120):
        gpu.lines += [f"at {half / 2} gpm:5 100000", f"at {half / 2 + 0.15} gpm:5 0"]
    run = sampled([gpu], dear_seconds=0.5)
    seen = []

    def differs():
        value = run.value(0, "tensor_active_ratio")
        if value is not None and value not in seen:
            seen.append(value)
        return len(seen) >= 2

    run.until(differs, 20, fail=False)
    # The first interval lasts until the next whole half second, and may be idle throughout. A later one that comes late on a
    # busy machine covers another share of the half second, but never none or all of it.
    assert len(seen) > 1
    assert all(0.02 < value < 0.98 for value in seen[1:]), seen


@pytest.mark.parametrize("how", ["the device", "the driver", "the settings"])
def test_unsupported_is_left_out_and_costs_nothing(sampled, how):
    gpu = h100()
    if how == "the device":
        gpu.lines = [line for line in gpu.lines if not line.startswith("get gpm:")]
    hide = ["nvmlGpmSampleGet", "nvmlGpmQueryDeviceSupport"] if how == "the driver" else []
    run = sampled([gpu], dear_seconds=0.5, hide=hide, gpm=how != "the settings")
    run.turns(1.5)
    assert values(run) == [None] * 4
    calls = run.fake.calls()
    assert not {"nvmlGpmSampleAlloc", "nvmlGpmSampleGet", "nvmlGpmMetricsGet"} & calls.keys()
    assert calls.get("nvmlGpmQueryDeviceSupport", 0) <= 1
    assert run.gpus.nvml_errors == {}


def test_a_metric_that_the_device_lacks_is_left_out_alone(sampled):
    gpu = h100()
    gpm(gpu, 10_000, 20_000, 30_000, 40_000)
    gpu.lines = [line for line in gpu.lines if not line.startswith("get gpm:5 ")]
    run = sampled([gpu], dear_seconds=0.5)
    run.until(lambda: run.value(0, "dram_active_ratio") is not None)
    assert values(run) == [0.1, 0.2, None, 0.4]


def test_garbage_is_left_out(sampled):
    gpu = h100()
    gpm(gpu, 5_000_000, 100_400, 30_000, 40_000)  # 5,000 % and a little rounding
    run = sampled([gpu], dear_seconds=0.5)
    run.until(lambda: run.value(0, "dram_active_ratio") is not None)
    assert values(run) == [None, 1.0, 0.3, 0.4]


def test_somebody_else_has_the_counters_for_a_while(sampled):
    gpu = h100()
    gpm(gpu, 10_000, 20_000, 30_000, 40_000)
    run = sampled([gpu], dear_seconds=0.5)
    run.until(lambda: None not in values(run))
    gpu.faults.append("error nvmlGpmSampleGet 19")  # in use
    run.fake.write()
    run.until(lambda: values(run) == [None] * 4)
    assert run.up(0)
    assert run.gpus.nvml_errors["nvmlGpmSampleGet", "in_use"] >= 1
    gpu.faults.clear()
    run.fake.write()
    run.until(lambda: None not in values(run))


def test_samples_are_given_back(sampled):
    """Two for each time that a GPU is opened; the library would keep them for as long as the process lives."""
    gpu = h100()
    run = sampled([gpu], dear_seconds=0.5)
    for times in range(1, 4):
        gpu.faults.append("error * 15")
        run.fake.write()
        run.until(lambda: not run.gpu(0).up)
        gpu.faults.clear()
        run.fake.write()
        run.until(lambda: run.up(0))
        run.until(lambda: run.fake.calls().get("nvmlGpmSampleFree", 0) == 2 * times)  # noqa: B023
    calls = run.fake.calls()
    assert calls["nvmlGpmSampleAlloc"] == calls["nvmlGpmSampleFree"] + 2


def test_each_mig_device_has_its_own_activity(sampled):
    gpu = mig_h100(slices=2)
    gpu.lines = [line for line in gpu.lines if not line.startswith("get gpm:")]
    gpm(gpu.migs[0], 10_000, 20_000, 30_000, 40_000)
    gpm(gpu.migs[1], 50_000, 60_000, 70_000, 80_000)
    run = sampled([gpu], dear_seconds=0.5)
    run.until(lambda: None not in values(run, "0:0") + values(run, "0:1"))
    assert values(run, "0:0") == [0.1, 0.2, 0.3, 0.4]
    assert values(run, "0:1") == [0.5, 0.6, 0.7, 0.8]
    assert values(run, "0") == [None] * 4
