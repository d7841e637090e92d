"""The child's lines: what is not one is refused; what is one lands in the state under the contract's names."""

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuwatch.exporters.catalogue import BY_NAME
from gpuwatch.samplers import catalog
from gpuwatch.samplers.lines import Heard, SampleLine, apply, decode, key
from gpuwatch.samplers.nvml_gpm import METRICS as GPM_METRICS
from gpuwatch.samplers.nvml_rings import QUICK, STEADY
from gpuwatch.state.gpus import Gpus


@given(data=st.one_of(st.binary(max_size=200), st.text(max_size=200).map(str.encode)))
def test_garbage_is_a_decode_error(data):
    with pytest.raises(msgspec.DecodeError):
        decode(data)


@given(
    document=st.recursive(
        st.none() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
        lambda inner: (
            st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["t", "gpus", "errors", "x"]), inner, max_size=4)
        ),
    )
)
def test_other_json_is_a_decode_error(document):
    with pytest.raises(msgspec.DecodeError):
        decode(json.dumps(document).encode())


def line(*devices, ns=1, **more):
    base = {"t": "sample", "monotonic_ns": ns, "wall_ns": ns, "seconds": 0.0, "memory_gap_seconds": 0.02}
    base |= {"driver": "1", "reinits": 0, "errors": {}}
    return decode(json.dumps({**base, "identities": {}, "gpus": list(devices), **more}).encode())


def device(index, uuid, **more):
    return {"index": index, "label": str(index), "uuid": uuid, **more}


def test_what_changed_is_applied_and_the_rest_stays():
    gpus, heard = Gpus(), Heard()
    apply(line(device(0, "A", info={"uuid": "A"}, gauges={"power_watts": 70.0, "clock_hertz;domain=sm": 9e8})), gpus, heard)
    apply(line(device(0, "A", gauges={"power_watts": 71.0}), ns=2), gpus, heard)
    gpu = gpus.by_uuid["A"]
    assert gpu.values == {("power_watts", ()): 71.0, ("clock_hertz", (("domain", "sm"),)): 9e8}
    apply(line(device(0, "A", gauges={"power_watts": None}), ns=3), gpus, heard)
    assert gpu.values == {("clock_hertz", (("domain", "sm"),)): 9e8}
    apply(line(device(0, "A", info={"uuid": "A"}, gauges={"power_watts": 1.0}), ns=4), gpus, heard)  # opened anew
    assert gpu.values == {("power_watts", ()): 1.0}
    assert gpu.last_sample_monotonic_ns == 4


def test_errors_and_reinits_add_up():
    gpus, heard = Gpus(), Heard()
    for _ in range(2):
        apply(line(errors={"nvmlX|gpu_is_lost": 3}, reinits=1), gpus, heard)
    assert gpus.nvml_errors == {("nvmlX", "gpu_is_lost"): 6}
    assert gpus.nvml_reinits == 2


def test_a_gpu_that_never_told_its_uuid_is_the_same_one_later():
    gpus, heard = Gpus(), Heard()
    apply(line(device(0, "", down="GPU is lost")), gpus, heard)
    assert [(gpu.label, gpu.up) for gpu in gpus] == [("0", False)]
    apply(line(device(0, "A", info={})), gpus, heard)
    assert [(gpu.label, gpu.uuid, gpu.up) for gpu in gpus] == [("0", "A", True)]
    apply(line(device(0, "", down="GPU is lost")), gpus, heard)
    assert [(gpu.label, gpu.uuid, gpu.up, gpu.reason) for gpu in gpus] == [("0", "A", False, "GPU is lost")]


def test_every_name_that_the_child_can_send_is_in_the_catalogue():
    own = ["memory_used_bytes", "memory_free_bytes", "memory_size_bytes", "memory_reserved_bytes", "bar1_memory_used_bytes",
           "memory_unattributed_bytes", "utilization_ratio", "memory_bandwidth_utilization_ratio", "power_watts",
           "busy_seconds_total", "fan_speed_ratio;fan=0"]  # fmt: skip
    getters = [*catalog.GAUGES, *catalog.SLOW, *catalog.ONCE, catalog.ENERGY, *catalog.FIELDS, *catalog.SLOW_FIELDS]
    getters += [catalog.THERMAL_FIELD, *GPM_METRICS]
    for name in [*own, *(each[0] for each in getters), *(name for name, _ in catalog.THROTTLE_BITS)]:
        metric, labels = key(name)
        known = BY_NAME[f"gpu_{metric}"]
        assert {label for label, _ in labels} | {"gpu"} == set(known.labels), name
    for name, *_ in (*QUICK, *STEADY):
        metric, labels = key(name)
        assert {label for label, _ in labels} | {"gpu", "window"} == set(BY_NAME[f"gpu_{metric}"].labels), name


def test_xids_are_counted_also_of_a_gpu_that_is_lost_by_them():
    gpus, heard = Gpus(), Heard()
    apply(line(device(0, "A", info={})), gpus, heard)
    second = 10**9
    apply(line(device(0, "A", down="GPU is lost", xids=[[79, 2, 5 * second], [31, 1, 6 * second]])), gpus, heard)
    apply(line(device(0, "A", down="GPU is lost", xids=[[79, 1, 7 * second]])), gpus, heard)
    readings = {(name, labels): value for name, labels, value in gpus.by_uuid["A"].readings(1) if name.startswith("xid")}
    assert readings == {
        ("xid_errors_total", (("xid", "79"),)): 3,
        ("xid_errors_total", (("xid", "31"),)): 1,
        ("xid_last_timestamp_seconds", (("xid", "79"),)): 7,
        ("xid_last_timestamp_seconds", (("xid", "31"),)): 6,
    }


def test_a_driver_that_makes_up_xids_cannot_make_up_series_without_end():
    gpus, heard = Gpus(), Heard()
    apply(line(device(0, "A", xids=[[xid, 1, 1] for xid in range(1000)])), gpus, heard)
    counts = {labels[0][1]: value for name, labels, value in gpus.by_uuid["A"].readings(1) if name == "xid_errors_total"}
    assert len(counts) == 33
    assert counts["other"] == 968


def test_extremes_of_the_past_count_in_the_window_in_which_they_were():
    gpus, heard = Gpus(), Heard()
    second = 10**9
    apply(line(device(0, "A", peaks={"power_peak_watts": 200.0}), ns=100 * second), gpus, heard)
    past = {"power_peak_watts": [[92 * second, 690.0], [95 * second, 300.0]], "clock_low_hertz;domain=sm": [[92 * second, 3e8]]}
    apply(line(device(0, "A", peaks={"power_peak_watts": 100.0}, extremes=past), ns=101 * second), gpus, heard)
    gpu = gpus.by_uuid["A"]
    at = {seconds: dict_of(gpu, (100 + seconds) * second) for seconds in (1, 4, 9, 11)}
    assert [at[seconds]["power_peak_watts"]["10s"] for seconds in at] == [690, 300, 200, 100]
    assert at[11]["power_peak_watts"]["60s"] == 690
    assert at[1]["clock_low_hertz"]["10s"] == 3e8
    assert "10s" not in at[4]["clock_low_hertz"]


def dict_of(gpu, now_ns):
    found = {}
    for name, labels, value in gpu.readings(now_ns):
        found.setdefault(name, {})[labels[-1][1]] = value
    return found


def test_a_line_is_a_sample_line():
    assert isinstance(line(), SampleLine)
