"""Parents of ranks told from processes that train: by their names, by their children's ranks, by what they wait for."""

import os
import subprocess
import sys

import pytest

from gpuwatch.attach import launchers
from gpuwatch.attach.process import children, read_process
from tests.attach.conftest import TARGETS, until

#: multiprocessing's children have torch's own library mapped, without the seconds that torch takes to load.
PARENT = f"""
import multiprocessing, runpy, socket, sys, time
def child(how):
    sys.argv = ["fake_torch.py"]
    store = socket.create_server(("127.0.0.1", 0))  # before torch 2.6 that is how a rank is told from a loader's worker
    runpy.run_path({str(TARGETS / "fake_torch.py")!r}, run_name="__main__")
def answers(queue):
    child("")
if __name__ == "__main__":
    kind, how = sys.argv[1:]
    context = multiprocessing.get_context(kind)
    queue = context.Queue()
    process = context.Process(target=child, args=(how,))
    process.start()
    if how == "wait":
        multiprocessing.connection.wait([process.sentinel])
    elif how == "join":
        process.join()
    elif how == "queue":
        queue.get()
    else:
        while True:
            sum(range(1000))
"""


@pytest.fixture
def parent(tmp_path):
    """`parent(kind, how)`: a process that has started another one, which has torch; both once the child is ready."""
    (tmp_path / "parent.py").write_text("import multiprocessing.connection\n" + PARENT)
    started = []

    def start(kind, how):
        command = [sys.executable, str(tmp_path / "parent.py"), kind, how]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
        started.append(process)
        assert process.stdout.readline() == "ready\n"
        [child] = until(lambda: [pid for pid in children(process.pid) if read_process(pid).torch])
        return process.pid, child

    yield start
    for process in started:
        os.killpg(process.pid, 9)
        process.communicate(timeout=10)


@pytest.mark.parametrize(("kind", "how"), [("spawn", "wait"), ("spawn", "join"), ("fork", "join"), ("fork", "wait")])
def test_who_waits_for_the_end_of_processes_with_torch_starts_ranks(kind, how, parent):
    pid, child = parent(kind, how)
    until(lambda: launchers.starts_ranks(read_process(pid)))
    assert not launchers.starts_ranks(read_process(child))


@pytest.mark.parametrize("how", ["queue", "compute"])
def test_who_waits_for_what_they_send_or_for_nothing_may_train(how, parent):
    pid, _ = parent("spawn", how)
    for _ in range(5):
        assert not launchers.starts_ranks(read_process(pid))


@pytest.mark.parametrize(("name", "expected"), [("RANK", True), ("LOCAL_RANK", True), ("OTHER", False)])
def test_whose_child_is_rank_zero_starts_ranks(name, expected, launch, tmp_path):
    (tmp_path / "starter.py").write_text(
        "import os, subprocess, sys\n"
        "child = subprocess.Popen([sys.executable, sys.argv[1]], env={**os.environ, sys.argv[2]: '0'})\n"
        "while True:\n    sum(range(1000))\n"
    )
    target = launch(tmp_path / "starter.py", TARGETS / "fake_torch.py", name)
    try:
        assert launchers.starts_ranks(read_process(target.pid)) is expected
    finally:
        for pid in children(target.pid):
            os.kill(pid, 9)


def test_the_rank_that_has_started_the_others_trains(launch, tmp_path):
    """As Lightning does it: the script itself is rank 0, and starts the others."""
    (tmp_path / "script.py").write_text(
        "import os, subprocess, sys\n"
        "child = subprocess.Popen([sys.executable, sys.argv[1]], env={**os.environ, 'LOCAL_RANK': '1'})\n"
        "while True:\n    sum(range(1000))\n"
    )
    target = launch(tmp_path / "script.py", TARGETS / "fake_torch.py")
    try:
        assert not launchers.starts_ranks(read_process(target.pid))
    finally:
        for pid in children(target.pid):
            os.kill(pid, 9)


@pytest.mark.parametrize(
    "words",
    [
        ["/opt/bin/torchrun", "x.py"],
        ["python3", "-m", "torch.distributed.run", "x.py"],
        ["python", "-u", "-m", "accelerate.commands.launch", "x.py"],
        ["python3", "/opt/bin/accelerate", "launch", "x.py"],
        ["python3", "-m", "deepspeed.launcher.launch", "x.py"],
        ["python3", "/opt/bin/deepspeed", "x.py"],
    ],
)
def test_launchers_of_known_names(words):
    import dataclasses

    own = read_process(os.getpid())
    assert dataclasses.replace(own, argv=tuple(words), ranks={}).launcher
    assert not dataclasses.replace(own, argv=("python3", "train.py", *words[1:]), ranks={}).launcher
