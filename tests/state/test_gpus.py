"""GPU state: labels that stay, counters that never fall, peaks against a slow twin."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from gpuwatch.state.gpus import Gpus
from gpuwatch.state.peaks import WINDOWS_SECONDS, Peaks

SECOND_NS = 1_000_000_000


@given(
    steps=st.lists(st.tuples(st.integers(0, 40 * SECOND_NS), st.integers(0, 9)), max_size=60),
    later=st.integers(0, 400 * SECOND_NS),
)
def test_peaks_against_looking_at_every_value(steps, later):
    peaks, values, now = Peaks(), [], 0
    for gap, value in steps:
        now += gap
        peaks.add(now, value)
        values.append((now, value))
    for at in (now, now + later):
        for seconds in WINDOWS_SECONDS.values():
            inside = [value for time, value in values if time >= at - seconds * SECOND_NS]
            assert peaks.largest(at, seconds) == (max(inside) if inside else None)


def test_peaks_keep_no_more_than_the_longest_window():
    peaks = Peaks()
    for second in range(10_000):
        peaks.add(second * SECOND_NS, 10_000 - second)  # falling: nothing hides anything
    assert len(peaks._values) <= 301


def test_a_label_belongs_to_one_uuid_for_good():
    gpus = Gpus()
    first, second = gpus.find("A", "0"), gpus.find("B", "1")
    assert gpus.find("A", "7") is first  # NVML's indices moved
    assert gpus.find("C", "0").label == "2"  # 0 and 1 are taken
    assert gpus.find("M", "1:0").label == "1:0"
    assert gpus.find("N", "1:0").label == "1:1"
    assert [gpu.label for gpu in gpus] == ["0", "1", "1:0", "1:1", "2"]
    assert second.label == "1"
    for number in range(3, 12):
        gpus.find(f"U{number}", str(number))
    assert [gpu.label for gpu in gpus][-3:] == ["9", "10", "11"]  # by number, not by letter


@given(raws=st.lists(st.floats(0, 1e9), min_size=1, max_size=50))
def test_a_followed_counter_never_falls_and_loses_nothing_that_it_can_know(raws):
    gpu = Gpus().find("A", "0")
    key, last, expected, values = ("energy_joules_total", ()), 0.0, 0.0, []
    for raw in raws:
        gpu.follow_counter(key, raw)
        expected += raw - last if raw >= last else raw  # it restarted at zero
        last = raw
        values.append(gpu.values[key])
        assert abs(values[-1] - expected) <= 1e-6 * (1 + expected)
    assert values == sorted(values)
    if any(later < earlier for earlier, later in pairwise(raws)):
        assert raws != sorted(raws)  # twin: the driver's own number falls


def test_a_gpu_that_is_down_keeps_counters_and_peaks_only():
    gpu = Gpus().find("A", "0")
    gpu.up = True
    gpu.values["power_watts", ()] = 70.0
    gpu.count(("busy_seconds_total", ()), 5.0)
    gpu.count(("busy_seconds_total", ()), -1.0)  # a clock that went back takes nothing away
    gpu.memory_used_peaks.add(SECOND_NS, 7)
    gpu.mark_down("GPU is lost")
    assert {(name, labels): value for name, labels, value in gpu.readings(2 * SECOND_NS)} == {
        ("busy_seconds_total", ()): 5.0,
        **{("memory_used_peak_bytes", (("window", window),)): 7 for window in WINDOWS_SECONDS},
    }
    assert gpu.age_seconds(SECOND_NS) is None
