"""The boundary: what passes, what does not, and when a probe is switched off."""

import gc
import weakref

import pytest
from gpuwatch_hooks.guard import FAULTS_ALLOWED, Guard


class Log:
    def __init__(self):
        self.faults, self.offs = [], []

    def guard(self):
        return Guard(lambda probe, error: self.faults.append((probe, type(error))), lambda *said: self.offs.append(said))


@pytest.fixture
def log():
    return Log()


def _fails(*_args, **_kwargs):
    raise ValueError("no such tensor")


def test_a_result_passes_and_an_exception_does_not(log):
    guard = log.guard()
    assert guard.wrap("p", lambda a, b=0: (a, b))(1, b=2) == (1, 2)
    assert guard.wrap("p", _fails, default="d")() == "d"
    assert guard.run("p", lambda a: a + 1, 1) == 2
    assert guard.run("p", _fails) is None
    assert log.faults == [("p", ValueError)] * 2


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_what_is_not_an_exception_passes(log, kind):
    guard = log.guard()

    def stop():
        raise kind

    for call in (guard.wrap("p", stop), lambda: guard.run("p", stop)):
        with pytest.raises(kind):
            call()
    assert log.faults == []


@pytest.mark.parametrize("kind", [MemoryError, RecursionError, AssertionError, StopIteration, Warning])
def test_every_exception_is_caught(log, kind):
    def fail():
        raise kind

    assert log.guard().wrap("p", fail)() is None
    assert log.faults == [("p", kind)]


def test_the_third_fault_switches_off_that_probe_alone_and_says_so_once(log):
    guard = log.guard()
    calls = []
    bad = guard.wrap("bad", lambda: calls.append(1) or _fails())
    good = guard.wrap("good", lambda: "fine")
    for _ in range(10):
        bad()
        guard.run("bad", bad)
    assert len(calls) == FAULTS_ALLOWED == 3
    assert log.offs == [("bad", 3, "ValueError: no such tensor")]
    assert guard.is_off("bad")
    assert not guard.is_off("good")
    assert good() == "fine"
    assert guard.faults() == {"bad": 3}


def test_twin_without_the_breaker_it_would_fail_at_every_step(log, monkeypatch):
    monkeypatch.setattr("gpuwatch_hooks.guard.FAULTS_ALLOWED", 1 << 60)
    guard = log.guard()
    bad = guard.wrap("bad", _fails)
    for _ in range(100):
        bad()
    assert len(log.faults) == 100
    assert log.offs == []


def test_reporting_a_fault_may_fail(log):
    guard = Guard(_fails, _fails)
    bad = guard.wrap("bad", _fails)
    for _ in range(5):
        assert bad() is None


def test_an_error_whose_text_fails_is_survived(log):
    class OddError(Exception):
        def __str__(self):
            raise RuntimeError

    def fail():
        raise OddError

    guard = log.guard()
    for _ in range(5):
        guard.run("p", fail)
    assert guard.is_off("p")


def test_a_fault_keeps_nothing_of_the_step_alive(log):
    class Tensor:
        pass

    alive = []

    def fail():
        tensor = Tensor()
        alive.append(weakref.ref(tensor))
        raise ValueError(tensor)

    guard = log.guard()
    hook = guard.wrap("p", fail)
    for _ in range(3):
        hook()
    gc.collect()
    assert [reference() for reference in alive] == [None] * 3
