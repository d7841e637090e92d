"""Children of a recording process: forked, spawned, from a fork server, or programs of their own."""

import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest
from gpuwatch_hooks import forks, wire

from tests.hooks.daemon_peer import wait_for
from tests.hooks.ring_reader import RingReader


@pytest.fixture
def armed(make_daemon, make_session):
    daemon = make_daemon()
    session = make_session()
    session.arm()
    wait_for(lambda: daemon.ring_fds and session.control.welcomes, what="the ring")
    session.daemon = daemon
    return session


def _in_child(work, seconds=20):
    """Exit status of a forked child that does `work`; a child that hangs is killed and shows as 'hung'."""
    child = os.fork()
    if child == 0:
        status = 99
        try:
            status = work() or 0
        finally:
            os._exit(status)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.0005)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "hung"


def test_a_forked_child_records_nothing_and_exits_as_it_would_have(armed):
    reader = RingReader(armed.ring.fd)
    armed.write(wire.KIND_EVENT, b"parent")

    def work():
        armed.drop("probe_fault")
        taken = [
            armed.write(wire.KIND_EVENT, b"child"),
            armed.ring.write(wire.KIND_EVENT, b"child"),
            armed.event("notice", 1, 0.0, "child"),
            armed.media("text", "t", 1, [], b"x"),
            armed.arm(),
        ]
        armed.ring.count_dropped("too_large")
        armed.scalar("loss", 1, 1.0)
        armed.end("exit")
        armed.detach()
        return 7 if not any(taken) and threading.active_count() == 1 else 1

    assert _in_child(work) == 7
    assert armed.write(wire.KIND_EVENT, b"parent again")
    assert [payload for _, _, payload, _ in reader.since(0)[0]] == [b"parent", b"parent again"]
    assert not any(reader.drops().values())
    reader.close()


def test_twin_without_the_fork_handler_the_child_writes_into_the_parents_ring(armed, monkeypatch):
    monkeypatch.setattr(forks, "_sessions", set())
    reader = RingReader(armed.ring.fd)
    _in_child(lambda: armed.write(wire.KIND_EVENT, b"child"))
    assert reader.since(0)[0][0][2] == b"child"
    reader.close()


def test_the_daemon_sees_the_parent_die_although_a_child_lives_on(make_daemon):
    daemon = make_daemon()
    code = """
        import os, sys, time
        from gpuwatch_hooks import session
        s = session.current(); s.arm()
        while not s.control.welcomes: time.sleep(0.01)
        if os.fork() == 0:
            time.sleep(30)
        os._exit(0)
    """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], start_new_session=True)
    try:
        assert process.wait(30) == 0
        wait_for(lambda: daemon.hellos and not daemon.connections, what="the end of the connection")
    finally:
        os.killpg(process.pid, signal.SIGKILL)


FORKS = """
import os, signal, sys, threading, time
from gpuwatch_hooks import session, wire

s = session.current()
s.arm()
while not s.control.welcomes:
    time.sleep(0.01)
ends = threading.Event()

def busy():  # the control thread is at work all the while: it holds whatever it holds at the moment of a fork
    step = 0
    while not ends.wait(0.0005):
        step += 1
        s.scalar("loss", step, 1.0)
        s.media("text", "t", step, [], b"x" * 100)
        s.control._wake()

thread = threading.Thread(target=busy)
thread.start()
for number in range(int(sys.argv[1])):
    child = os.fork()
    if child == 0:
        s.write(wire.KIND_EVENT, b"child")
        s.scalar("loss", 1, 1.0)
        s.end("exit")
        if number % 10 == 0:
            sys.exit(7)  # all the way through the interpreter's end, with its atexit handlers
        os._exit(7)
    signal.alarm(10)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7, number
    signal.alarm(0)
ends.set()
thread.join()
assert s.ring.sequence == 0
print("forked", number + 1)
"""


@pytest.mark.slow
def test_a_thousand_forks_without_a_deadlock(make_daemon):
    make_daemon()
    forked = subprocess.run([sys.executable, "-c", FORKS, "1000"], capture_output=True, text=True, timeout=110, check=False)
    assert (forked.returncode, forked.stdout) == (0, "forked 1000\n"), forked.stderr[-2000:]


def test_a_fork_before_the_first_step_leaves_both_free(make_daemon, make_session):
    """A launcher that forks its ranks: each may record from its own first step, since there is nothing to share yet."""
    daemon = make_daemon()
    session = make_session()

    def work():
        session.arm()
        session.write(wire.KIND_EVENT, b"rank 1")
        session.end("exit")

    assert _in_child(work) == 0
    session.arm()
    wait_for(lambda: len(daemon.hellos) == 2, what="both hellos")
    assert len({hello["ns_pid"] for hello in daemon.hellos}) == 2
    assert len({hello["ring"]["id"] for hello in daemon.hellos}) == 2
    assert len({hello["attempt_id"] for hello in daemon.hellos}) == 2
    session.end("exit")


WORKERS = """
import multiprocessing, os, sys, time, torch
from gpuwatch_hooks import bootstrap, control, session

control.FAREWELL_SECONDS = 60.0  # on a busy machine a process of two steps takes long to say hello and goodbye

def train(steps):
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 1)
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(steps):
        sgd.zero_grad()
        model(torch.ones(2, 4)).sum().backward()
        sgd.step()

class Data(torch.utils.data.Dataset):
    def __len__(self):
        return 8
    def __getitem__(self, index):
        train(1)  # even a worker that trains something is no trainer
        return torch.tensor([os.getpid(), index])

def job(queue):
    print("job", os.getpid(), file=sys.stderr, flush=True)
    train(2)
    queue.put(os.getpid())
    sys.exit(5)

def work(method):
    if method.startswith("loader"):
        start = method.partition(" ")[2]
        loader = torch.utils.data.DataLoader(Data(), batch_size=4, num_workers=2, multiprocessing_context=start)
        pids = {int(batch[0, 0]) for batch in loader}
        assert os.getpid() not in pids and len(pids) == 2, pids
        return
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    process = context.Process(target=job, args=(queue,))
    process.start()
    assert queue.get(timeout=240) != os.getpid()
    process.join(120)
    assert process.exitcode == 5, process.exitcode

if __name__ == "__main__":
    when, *methods = sys.argv[1:]
    if when != "under gpuwatch run":
        bootstrap.start()
    if when != "before the first step":
        train(3)
        while not session.current().control.welcomes:
            time.sleep(0.01)
    for method in methods:
        work(method)
    train(5 - session.current().step)
    print("done")
"""


def _steps(fd):
    reader = RingReader(fd)
    records = reader.since(0)[0]
    reader.close()
    assert records[-1][1] == wire.KIND_END
    return [wire.STEP_HEAD.unpack_from(payload)[0] for _, kind, payload, _ in records if kind == wire.KIND_STEP]


@pytest.mark.slow
@pytest.mark.timeout(300)  # six programs that import torch, one after the other
@pytest.mark.parametrize(
    ("when", "methods", "recorded", "unrecorded"),
    [
        ("after the first step", ["loader fork", "fork", "fork", "spawn", "forkserver"], [5], 1),
        # A rank forked by a process that does not train (yet) is a rank like any other; a DataLoader's worker never is.
        ("before the first step", ["fork", "loader fork"], [2, 5], 0),
        # Under `gpuwatch run` the hooks are in every program, so that what a spawned one trains is recorded as its own.
        ("under gpuwatch run", ["fork", "spawn", "forkserver", "loader spawn"], [2, 2, 5], 1),
    ],
)
def test_worker_processes(make_daemon, tmp_path, when, methods, recorded, unrecorded):
    """`recorded`: how many steps each process that records has taken; `unrecorded`: whether it is said that some were not."""
    daemon = make_daemon()
    script = tmp_path / "trains.py"
    script.write_text(WORKERS)
    environment = dict(os.environ)
    if when == "under gpuwatch run":
        environment |= {"GPUWATCH": "1", "PYTHONPATH": str(Path(forks.__file__).parent / "inject")}
    command = [sys.executable, str(script), when, *methods]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False, env=environment)
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr
    assert done.stderr.count("gpuwatch: ") == unrecorded, done.stderr
    told = re.findall(r"gpuwatch: process (\d+) was forked .* its steps are not recorded", done.stderr)
    assert len(told) == unrecorded
    assert set(told) <= set(re.findall(r"job (\d+)", done.stderr)), "a DataLoader's worker is no trainer"
    wait_for(lambda: len(daemon.ring_fds) == len(recorded) and not daemon.connections, 60, what="the end of all")
    assert sorted(len(_steps(fd)) for fd in daemon.ring_fds) == recorded


RANK = """
import multiprocessing, sys
from gpuwatch_hooks import session, wire
def job():
    s = session.current()
    s.arm()
    s.write(wire.KIND_STEP, wire.pack_step(4, 0, 0, 0, bytes(8 * len(wire.STEP_FIELDS)), ()))
    {ending}
process = multiprocessing.get_context("fork").Process(target=job)
process.start()
process.join()
sys.exit(process.exitcode)
"""


@pytest.mark.parametrize(
    ("ending", "status", "reason"),
    [("pass", 0, "exit"), ("sys.exit(6)", 6, "exit"), ("1 / 0", 1, "exception")],
)
def test_a_rank_that_multiprocessing_ends_says_why(make_daemon, ending, status, reason):
    """Such a process leaves by os._exit, behind the back of atexit."""
    daemon = make_daemon()
    done = subprocess.run([sys.executable, "-c", RANK.format(ending=ending)], capture_output=True, timeout=60, check=False)
    assert done.returncode == status
    reader = RingReader(wait_for(lambda: daemon.ring_fds)[0])
    _, kind, payload, _ = reader.since(0)[0][-1]
    reader.close()
    assert (kind, wire.END_HEAD.unpack(payload)) == (wire.KIND_END, (4, wire.END_REASONS.index(reason)))


def test_the_page_that_children_share_goes_with_the_last_session(armed, make_session, monkeypatch):
    monkeypatch.setattr(forks, "_sessions", {armed})  # without those of other tests
    other = make_session()
    other.arm()
    armed.detach()
    assert forks._told is not None
    other.detach()
    assert forks._told is None
    last = make_session()
    last.arm()
    assert forks._told[0] == 0
