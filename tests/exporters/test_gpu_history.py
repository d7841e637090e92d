from hypothesis import given
from hypothesis import strategies as st

from gpuwatch.exporters.gpu_history import GpuHistory
from gpuwatch.state.gpus import Gpus
from tests.exporters.node import fill

SECOND_NS = 10**9


class Node:
    def __init__(self):
        self.gpus, self.host = Gpus(), None


def sampled(times_ns, **more):
    """A history of one GPU whose power is the time of the sample in seconds."""
    node, history = Node(), GpuHistory()
    for at_ns in times_ns:
        fill(node, now_ns=at_ns, **more)
        for gpu in node.gpus:
            gpu.values["power_watts", ()] = at_ns / SECOND_NS
        history.sample(node.gpus)
    return history


@given(st.lists(st.integers(1, 10**11), min_size=1, max_size=20, unique=True), st.integers(0, 10**11))
def test_the_nearest_sample_or_none(times_ns, at_ns):
    history = sampled(sorted(times_ns))
    found = dict(history.readings(0, at_ns)).get("gpu/0/power")
    distance_ns = min(abs(t - at_ns) for t in times_ns)
    if distance_ns > 5 * SECOND_NS:
        assert found is None
    else:
        assert abs(found * SECOND_NS - at_ns) <= distance_ns + 1


def test_a_sample_is_taken_once_and_none_of_a_gpu_that_is_down():
    node, history = Node(), GpuHistory()
    fill(node, now_ns=SECOND_NS)
    history.sample(node.gpus)
    history.sample(node.gpus)
    assert len(history._samples["0"]) == 1
    fill(node, now_ns=2 * SECOND_NS)
    next(iter(node.gpus)).mark_down("lost")
    history.sample(node.gpus)
    assert len(history._samples["0"]) == 1


def test_the_gpus_of_the_process_else_all():
    history = sampled([SECOND_NS], gpus=3, processes=1, ranks=(7, 8))
    assert {tag for tag, _ in history.readings(8, SECOND_NS)} == {
        f"gpu/1/{last}" for last in ("memory_used", "memory_peak", "utilization", "power")
    }
    assert {tag.split("/")[1] for tag, _ in history.readings(99, SECOND_NS)} == {"0", "1", "2"}


def test_memory_is_bounded():
    history = sampled(range(SECOND_NS, 701 * SECOND_NS, SECOND_NS))
    assert len(history._samples["0"]) == 600
