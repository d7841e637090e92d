"""A profiler trace that is cut short: torch's profiler is its thread's own, and may not stay behind in the job."""

import threading
import time

import pytest
import torch
from gpuwatch_hooks import on_demand, pending
from torch import nn

from tests.hooks.recording import recording


@pytest.fixture
def job():
    """(a session that records, one step of a training); the trace of 50 steps is under way."""
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)

    def step():
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()

    with recording() as session:
        session.media = lambda *_: True
        on_demand.begin(session, {"t": "trace", "steps": 50, "ticket": 7})
        for _ in range(4):
            step()
        assert torch.autograd._profiler_enabled()
        yield session, step


def from_another_thread(function):
    """Run `function` there while this thread, the main one, executes Python."""
    thread = threading.Thread(target=function)
    thread.start()
    while thread.is_alive():
        sum(range(100))


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_detach_stops_the_profiler_in_the_thread_that_it_records(job, elsewhere):
    session, step = job
    (from_another_thread if elsewhere else (lambda function: function()))(session.recorder.remove)
    assert not torch.autograd._profiler_enabled()
    assert session.told[-1]["on_demand_failed"] == "the hooks were taken out meanwhile"
    step()


def test_time_is_up_although_no_step_ends(job):
    session, step = job
    trace = session.recorder.probes[-1]
    from_another_thread(trace._out_of_time)
    assert not torch.autograd._profiler_enabled()
    assert "no step ended within" in session.told[-1]["on_demand_failed"]
    assert trace not in session.recorder.probes
    told = len(session.told)
    step()
    assert len(session.told) == told


def test_twin_stopped_on_another_thread_it_records_on(job):
    session, _ = job
    trace = session.recorder.probes[-1]
    from_another_thread(trace._take_and_stop)
    assert torch.autograd._profiler_enabled()
    torch.autograd._disable_profiler()


def test_a_main_thread_that_executes_no_python_is_not_waited_for_long():
    answers = []

    def ask():
        time.sleep(0.3)
        answers.append(pending.call(lambda: None, 0.2))

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join(30)  # waits for a lock, in C
    assert answers == [False]
