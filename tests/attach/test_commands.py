"""`gpuwatch attach`, `detach` and `ps` as a user calls them: on one job, on all ranks, for a while, to look only."""

import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gpuwatch.attach.machines import here
from gpuwatch.attach.process import children, read_process
from tests.attach.conftest import TARGETS, ask, run_of, until
from tests.running_daemon import RunningDaemon, wait_until

pytestmark = pytest.mark.skipif(here() is None, reason="the ptrace injector is built for x86-64 and aarch64")
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def command(tmp_path, daemon):
    """`command("attach", ...)` runs gpuwatch with the shared daemon's socket; options of subprocess.run by keyword."""
    environ = {**os.environ, "GPUWATCH_SOCKET": str(daemon.socket), "XDG_STATE_HOME": str(tmp_path / "state"), "NO_COLOR": "1"}

    def run(*arguments, start=False, **changes):
        call = [sys.executable, "-m", "gpuwatch", *map(str, arguments)]
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": ROOT, "env": environ | changes}
        return (
            subprocess.Popen(call, stdin=subprocess.PIPE, **options)
            if start
            else subprocess.run(call, timeout=100, check=False, **options)
        )

    return run


def test_attach_says_what_it_did_and_logs_it(launch, command, daemon, tmp_path):
    target = launch("trains.py", stderr=subprocess.PIPE)
    ran = command("attach", target.pid, "--name", "by-command")
    assert ran.returncode == 0, ran.stderr
    assert f"{target.pid} trains.py: attached (ptrace, stopped for " in ran.stdout
    assert target.stderr.readline().startswith("gpuwatch: hooks attached by uid")
    wait_until(lambda: (r := run_of(target, daemon)) and r.run == "by-command" and r.step > 3)
    entry = json.loads((tmp_path / "state" / "gpuwatch" / "attach.log").read_text())
    assert (entry["pid"], entry["uid"], entry["verb"], entry["answer"]) == (target.pid, os.getuid(), "begin", "installed")
    assert entry["stopped_microseconds"] > 0


def test_a_job_with_hooks_is_told_over_the_socket_without_tracing(launch, command, daemon):
    target = launch("trains.py")
    before = ask(target, "look")
    assert command("attach", target.pid, "-q").returncode == 0
    wait_until(lambda: (r := run_of(target, daemon)) and r.step > 3)
    # While another tracer holds it no tracing could succeed: what works now needs none.
    holder = subprocess.Popen(
        ["strace", "-p", str(target.pid), "-o", os.devnull, "-e", "trace=none"], stderr=subprocess.DEVNULL
    )
    try:
        until(lambda: read_process(target.pid).tracer)
        again = json.loads(command("attach", target.pid, "--every", 9, "--json").stdout)
        assert [(one["answer"], one["method"], one["stopped_microseconds"]) for one in again] == [("already", "socket", 0.0)]
        out = command("detach", target.pid, "--json")
        assert [(one["answer"], one["method"]) for one in json.loads(out.stdout)] == [("detached", "socket")], out.stderr
    finally:
        holder.terminate()
        holder.wait(10)
    until(lambda: ask(target, "look") == before)
    assert command("detach", target.pid, "--method", "socket").returncode == 1


@pytest.mark.slow
def test_a_job_started_under_run_can_be_detached_and_attached_again(tmp_path, command, daemon):
    started = command("run", "--name", "carried", "--", sys.executable, TARGETS / "trains.py", start=True)
    try:
        [pid] = until(lambda: [p for p in children(started.pid) if read_process(p).torch], 30)
        wait_until(lambda: daemon.runs().get("carried") and daemon.runs()["carried"].step > 3)
        out = command("detach", pid, "--json")
        assert json.loads(out.stdout)[0]["method"] == "socket"
        wait_until(lambda: daemon.runs()["carried"].end_reason == "detached")
        assert command("attach", pid, "--name", "again").returncode == 0
        wait_until(lambda: daemon.runs().get("again") and daemon.runs()["again"].step > 3)
        assert command("detach", pid).returncode == 0
    finally:
        for pid in children(started.pid):
            os.kill(pid, 9)
        started.communicate(timeout=30)


@pytest.mark.slow
def test_tree_attaches_to_all_ranks_of_a_launcher(command, daemon, tmp_path):
    script = tmp_path / "ranks.py"
    script.write_text(RANKS)
    launcher = subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)],
        env={k: v for k, v in os.environ.items() if not k.startswith("GPUWATCH")} | {"OMP_NUM_THREADS": "1"},
    )
    try:
        ranks = until(lambda: found if len(found := stepping(launcher.pid)) == 2 else None, 90)
        refused = command("attach", launcher.pid)
        assert refused.returncode == 1
        assert f"--tree {launcher.pid}" in refused.stdout
        out = command("attach", "--tree", launcher.pid, "--json", "--name", "tree")
        outcomes = json.loads(out.stdout)
        assert sorted(one["pid"] for one in outcomes) == sorted(ranks)
        assert {one["answer"] for one in outcomes} == {"installed"}, outcomes
        seen = wait_until(
            lambda: found if len(found := [r for r in daemon.runs().values() if r.run == "tree" and r.step > 2]) == 2 else None
        )
        assert sorted(run.rank for run in seen) == [0, 1]
        assert {run.world_size for run in seen} == {2}
        listed = {row["pid"]: row for row in json.loads(command("ps", "--json").stdout)}
        assert listed[launcher.pid]["role"] == "launcher"
        assert {(listed[pid]["role"], listed[pid]["hooks"]) for pid in ranks} == {("training", "attached")}
        assert {listed[pid]["rank"] for pid in ranks} == {"0", "1"}
        assert command("detach", "--tree", launcher.pid).returncode == 0
    finally:
        launcher.terminate()
        launcher.wait(60)


RANKS = """
import os, time, torch, torch.distributed as dist
dist.init_process_group("gloo")
model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(8, 2))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
while True:
    optimizer.zero_grad()
    model(torch.randn(4, 8)).sum().backward()
    optimizer.step()
    open(__file__ + os.environ["RANK"], "a").close()
    time.sleep(0.01)
"""


def stepping(launcher):
    """Ranks below `launcher` that have taken a step."""
    found = []
    for pid in children(launcher):
        process = read_process(pid)
        if "RANK" in process.ranks and Path(process.argv[-1] + process.ranks["RANK"]).exists():
            found.append(pid)
    return found


def test_dry_run_touches_nothing(launch, command):
    target = launch("trains.py")
    before = ask(target, "look")
    out = command("attach", "--dry-run", target.pid)
    assert out.returncode == 0
    assert "can be attached to" in out.stdout
    assert ask(target, "look") == before
    plain = launch("busy.py")
    refused = command("attach", "--dry-run", plain.pid)
    assert refused.returncode == 1
    assert "--wait" in refused.stdout


def test_wait_waits_for_torch(launch, command, tmp_path):
    late = tmp_path / "late.py"
    late.write_text("import time\nprint('ready', flush=True)\ntime.sleep(3)\n" + (TARGETS / "trains.py").read_text())
    target = launch(late)
    assert "torch is not loaded" in command("attach", target.pid).stdout
    out = command("attach", "--wait", "--timeout", 60, target.pid, "-q")
    assert out.returncode == 0, out.stdout
    assert target.stdout.readline() == "ready\n"
    assert command("detach", target.pid).returncode == 0


def test_duration_takes_the_hooks_out_again(launch, command, daemon):
    target = launch("trains.py")
    before = ask(target, "look")
    out = command("attach", "--duration", 1, target.pid, "-q")
    assert out.returncode == 0
    assert "detached" in out.stderr
    until(lambda: ask(target, "look") == before)
    assert run_of(target, daemon).end_reason == "detached"


def test_without_a_daemon_it_brings_its_own_and_takes_it_away(launch, command, tmp_path):
    target = launch("trains.py")
    with socket.socket() as taken:  # the usual port is in use: it says so and takes another
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            taken.bind(("127.0.0.1", 9877))
            taken.listen()
        except OSError:
            pass  # somebody else's daemon has it already, which is as good
        out = command(
            "attach", target.pid, "-q", "--duration", 2, "--logdir", tmp_path / "own", GPUWATCH_SOCKET=str(tmp_path / "no.sock")
        )
    assert out.returncode == 0, out.stderr
    assert f"recording in {tmp_path / 'own'}" in out.stderr
    assert "(port 9877 is taken)" in out.stderr
    [summary] = (tmp_path / "own").rglob("run.json")
    assert json.loads(summary.read_text())["step"] > 3


def test_a_main_thread_that_sleeps_is_visited(launch, command, tmp_path):
    """Another thread trains, the main one waits for it: it reaches no bytecode until the end of the training."""
    (tmp_path / "waits.py").write_text(WAITS)
    target = launch(tmp_path / "waits.py")
    out = command("attach", target.pid, "-q", "--json", "--timeout", 60)
    assert out.returncode == 0, out.stdout
    assert [one["answer"] for one in json.loads(out.stdout)] == ["installed"]
    out = command("detach", target.pid)
    assert out.returncode == 0, out.stdout


WAITS = """
import threading, time, torch
def train():
    model = torch.nn.Linear(4, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    while True:
        model(torch.ones(4)).sum().backward()
        optimizer.step()
        time.sleep(0.005)
thread = threading.Thread(target=train, daemon=True)
thread.start()
print("ready", flush=True)
thread.join()
"""


def test_a_thread_beside_a_waiting_main_thread_is_recorded(launch, command, daemon, tmp_path):
    (tmp_path / "waits.py").write_text(WAITS)
    target = launch(tmp_path / "waits.py")
    assert command("attach", target.pid, "-q").returncode == 0
    wait_until(lambda: (r := run_of(target, daemon)) and r.step > 3)


def test_a_main_thread_that_may_not_be_visited_is_told_as_queued_and_waited_for(launch, command, tmp_path):
    script = "import fcntl, sys, time, torch\nprint('ready', flush=True)\nfcntl.flock(open(sys.argv[1]), fcntl.LOCK_EX)\n"
    (tmp_path / "waits.py").write_text(script + "while True:\n    time.sleep(0.01)\n")
    with (tmp_path / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        target = launch(tmp_path / "waits.py", tmp_path / "lock")
        out = command("attach", target.pid, "-q", "--timeout", 0.5)
        assert out.returncode == 1
        assert "queued: the main thread has not come back to Python (it sleeps in " in out.stdout, out.stdout
        assert "--wait waits for that" in out.stdout
        waiting = command("attach", target.pid, "-q", "--wait", start=True)
        time.sleep(2)
        assert waiting.poll() is None
    said, _ = waiting.communicate(timeout=60)  # the lock is free now
    assert waiting.returncode == 0, said
    assert f"{target.pid} waits.py: " in said
    assert command("detach", target.pid, "--timeout", 60).returncode == 0


def test_a_stopped_process_and_a_way_in_that_it_does_not_have_are_told(launch, command):
    target = launch("trains.py")
    os.kill(target.pid, signal.SIGSTOP)
    out = command("attach", target.pid, "-q", "--timeout", 0.5)
    os.kill(target.pid, signal.SIGCONT)
    assert f"queued: the process is stopped; kill -CONT {target.pid} lets it go on" in out.stdout, out.stdout
    until(lambda: ask(target, "look")["modules"])
    assert command("detach", target.pid, "--timeout", 60).returncode == 0
    if sys.version_info < (3, 14):
        out = command("attach", target.pid, "--method", "remote-debug")
        assert out.returncode == 1
        assert f"Python 3.{sys.version_info[1]} has no remote debugging interface" in out.stdout, out.stdout


@pytest.mark.slow
def test_hooks_leave_by_themselves_when_the_daemon_stays_away(launch, command, tmp_path):
    target = launch("trains.py")
    before = ask(target, "look")
    with RunningDaemon(tmp_path) as own:
        environment = {"GPUWATCH_SOCKET": str(own.socket), "GPUWATCH_HOOKS_DETACH_AFTER_SECONDS": "2"}
        assert command("attach", target.pid, "-q", **environment).returncode == 0
        wait_until(lambda: any(run.step > 3 for run in own.runs().values()))
        time.sleep(3)  # longer than that, and it is there: they stay
        assert ask(target, "look")["modules"]
    until(lambda: ask(target, "look") == before, 40)


@pytest.mark.slow
def test_twin_told_never_to_leave_they_stay(launch, command, tmp_path):
    target = launch("trains.py")
    with RunningDaemon(tmp_path) as own:
        environment = {"GPUWATCH_SOCKET": str(own.socket), "GPUWATCH_HOOKS_DETACH_AFTER_SECONDS": "0"}
        assert command("attach", target.pid, "-q", **environment).returncode == 0
        wait_until(lambda: any(run.step > 3 for run in own.runs().values()))
    time.sleep(6)
    assert ask(target, "look")["modules"]


def test_all_takes_every_training_process(launch, command):
    target, other = launch("trains.py"), launch("busy.py")
    out = command("attach", "--all", "--dry-run", "--json")
    pids = [one["pid"] for one in json.loads(out.stdout)]
    assert target.pid in pids
    assert other.pid not in pids


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--all", "1"],
        ["0"],
        ["x"],
        ["--method", "magic", "1"],
        ["--every", "0", "1"],
        ["--nonsense", "1"],
        ["--timeout", "0", "1"],
    ],
)
def test_wrong_use_is_a_sentence_and_exit_2(arguments, command):
    out = command("attach", *arguments)
    assert out.returncode == 2
    assert "Traceback" not in out.stderr
    assert out.stderr


def test_a_process_that_is_gone(command):
    out = command("attach", 4194304)
    assert out.returncode == 1
    assert out.stdout == "4194304: refused: there is no process 4194304; `gpuwatch ps` lists what trains here\n"


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("unshare") is None, reason="needs root and unshare")
def test_a_job_in_its_own_pid_and_network_namespace(command, daemon, tmp_path):
    target = subprocess.Popen(
        ["unshare", "--fork", "--pid", "--net", "--ipc", "--uts", sys.executable, str(TARGETS / "trains.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert target.stdout.readline() == "ready\n"
        [inner] = children(target.pid)
        assert read_process(inner).namespace_pids[-1] == 1
        out = command("attach", inner, "-q", "--name", "namespaced")
        assert out.returncode == 0, out.stdout
        run = wait_until(lambda: (r := daemon.runs().get("namespaced")) and r.step > 3 and r)
        assert run.identity.pid == inner  # as the daemon sees it, not 1
        assert run.hello.ns_pid == 1
        assert command("detach", inner).returncode == 0
    finally:
        for pid in children(target.pid):
            os.kill(pid, 9)
        target.kill()
        target.wait(10)


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("unshare") is None, reason="needs root and unshare")
@pytest.mark.parametrize("hidden", [False, True])
def test_a_job_in_its_own_mount_namespace(hidden, command, tmp_path):
    """Where the socket's folder is not visible, a way to it is passed in."""
    (tmp_path / "daemon").mkdir(mode=0o700)
    with RunningDaemon(tmp_path / "daemon", logdir=str(tmp_path / "runs")) as own:
        hide = f"mount -t tmpfs none {own.folder} && mount -t proc none /proc && " if hidden else ""
        program = f"{hide}exec {sys.executable} {TARGETS / 'trains.py'}"
        namespaces = ["--fork", "--pid", "--net", "--ipc", "--mount"] if hidden else ["--mount"]
        target = subprocess.Popen(
            ["unshare", *namespaces, "sh", "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        environment = {"GPUWATCH_SOCKET": str(own.socket)}
        try:
            assert target.stdout.readline() == "ready\n"
            pid = children(target.pid)[0] if hidden else target.pid
            before = ask(target, "look")
            out = command("attach", pid, "-q", "--name", "mounted", **environment)
            assert out.returncode == 0, out.stdout
            wait_until(lambda: own.runs().get("mounted") and own.runs()["mounted"].step > 3)
            assert command("detach", pid, **environment).returncode == 0
            until(lambda: ask(target, "look") == before)
        finally:
            for pid in [*children(target.pid), target.pid]:
                os.kill(pid, 9)
            target.wait(10)


SPAWNS = """
import os, sys, time, torch, torch.multiprocessing, torch.utils.data
class Data(torch.utils.data.Dataset):
    def __len__(self): return 1000000
    def __getitem__(self, index): return torch.zeros(1)
def rank(number, kind):
    model = torch.nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loader = torch.utils.data.DataLoader(Data(), num_workers=1, multiprocessing_context=kind)
    for batch in loader:
        model(batch).sum().backward()
        optimizer.step()
        open(f"{__file__}.{os.getpid()}", "a").close()
        time.sleep(0.01)
if __name__ == "__main__":
    torch.multiprocessing.spawn(rank, (sys.argv[1],), nprocs=1)
"""


@pytest.mark.slow
def test_spawned_ranks_are_told_from_loaders_workers(command, tmp_path):
    script = tmp_path / "spawns.py"
    script.write_text(SPAWNS)
    target = subprocess.Popen([sys.executable, str(script), "spawn"], start_new_session=True)
    try:
        marks = until(lambda: list(tmp_path.glob("spawns.py.*")), 90)
        rank = int(marks[0].suffix[1:])
        listed = {row["pid"]: row for row in json.loads(command("ps", "--json").stdout)}
        assert listed[rank]["role"] == "training"
        workers = [pid for pid in children(rank) if pid in listed]
        assert [listed[pid]["role"] for pid in workers] == ["worker"]
        assert listed[target.pid]["role"] == "launcher"
        found = json.loads(command("attach", "--tree", target.pid, "--dry-run", "--json").stdout)
        assert [one["pid"] for one in found] == [rank]
        refused = command("attach", "--dry-run", target.pid).stdout
        assert f"attach to those, or use --tree {target.pid}" in refused
        assert f"are {rank}:" in refused
    finally:
        os.killpg(target.pid, 9)
        target.wait(10)
