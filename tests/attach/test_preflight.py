"""Each refusal produced by a real process in that state, with the sentence that its user gets."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest

from gpuwatch.attach import attacher, reach
from gpuwatch.attach.attacher import look
from gpuwatch.attach.preflight import check
from gpuwatch.attach.process import children, python_processes, read_process
from tests.attach.conftest import TARGETS, until

is_root = os.geteuid() == 0


def only_finding(pid):
    findings = check(read_process(pid))
    assert len(findings) == 1, findings
    return findings[0]


BECOME_NOBODY = "os.setgroups([]); os.setgid(65534); os.setuid(65534)"


def looked_at_by_nobody(pid):
    """What uid 65534 is told about `pid`: [code, sentence, fix] of the one finding. Everything is imported before the change of
    user, who may not enter the folders that the modules lie in."""
    program = (
        "import json, os\nfrom gpuwatch.attach.preflight import check\nfrom gpuwatch.attach.process import read_process\n"
        f"{BECOME_NOBODY}\nprint(json.dumps([finding[:3] for finding in check(read_process({pid}))]))"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=True)
    [finding] = json.loads(ran.stdout)
    return finding


def test_a_training_process_has_nothing_against_it(launch):
    process = read_process(launch("fake_torch.py").pid)
    assert check(process) == []
    assert process.torch
    assert process.python == sys.version_info[:2]
    assert process.title == "fake_torch.py"


def test_python_without_torch(launch):
    finding = only_finding(launch("busy.py").pid)
    assert finding.code == "no_torch"
    assert "--wait" in finding.fix


def test_not_python():
    sleeper = subprocess.Popen(["sleep", "60"])
    try:
        finding = until(lambda: "sleep" in os.readlink(f"/proc/{sleeper.pid}/exe") and only_finding(sleeper.pid))
        assert finding.code == "not_python"
        assert read_process(sleeper.pid).title == "sleep"  # no argument of it, which may be a secret
        assert "gpuwatch ps" in finding.fix
    finally:
        sleeper.kill()
        sleeper.wait()


def test_zombie():
    ended = subprocess.Popen(["true"])
    try:
        finding = until(lambda: read_process(ended.pid).state == "Z" and only_finding(ended.pid))
        assert finding.code == "zombie"
    finally:
        ended.wait()


def test_gone_is_one_sentence():
    ended = subprocess.Popen(["true"])
    ended.wait()
    process, refusal = look(ended.pid)
    assert process is None
    assert refusal.sentence == f"there is no process {ended.pid}"


def test_one_that_ends_while_it_is_looked_at_has_ended(launch, monkeypatch):
    target = launch("fake_torch.py")
    seen = read_process(target.pid)
    target.kill()
    until(lambda: read_process(target.pid).state == "Z")
    finding = check(replace(seen, readable=False))[0]
    assert finding.code == "zombie", finding
    target.wait()
    finding = check(replace(seen, readable=False))[0]
    assert finding.sentence == f"process {target.pid} has ended"
    monkeypatch.setattr(attacher, "look", lambda _pid: (seen, None))  # as it was a moment ago
    assert attacher.apply(target.pid, "end", {}).sentence == f"process {target.pid} has ended"


def test_stopped_is_no_refusal_but_told(launch):
    target = launch("fake_torch.py")
    os.kill(target.pid, signal.SIGSTOP)
    finding = until(lambda: read_process(target.pid).state == "T" and only_finding(target.pid))
    assert finding.code == "stopped"
    assert not finding.fatal
    assert f"kill -CONT {target.pid}" in finding.fix


@pytest.mark.skipif(shutil.which("strace") is None, reason="no strace on this machine")
def test_already_traced(launch):
    target = launch("fake_torch.py")
    tracer = subprocess.Popen(["strace", "-f", "-p", str(target.pid), "-o", os.devnull], stderr=subprocess.DEVNULL)
    try:
        finding = until(lambda: read_process(target.pid).tracer and only_finding(target.pid))
        assert finding.code == "traced"
        assert "strace" in finding.sentence
        assert str(tracer.pid) in finding.sentence
    finally:
        tracer.terminate()
        tracer.wait(10)


@pytest.mark.skipif(not is_root, reason="needs root to become somebody else")
def test_another_user_is_told_whose_it_is(launch):
    code, sentence, fix = looked_at_by_nobody(launch("fake_torch.py").pid)
    assert code == "other_user"
    assert "belongs to root, you are uid 65534" in sentence
    assert fix == "run with sudo"


@pytest.mark.skipif(not is_root, reason="needs root to become somebody else")
def test_a_user_is_told_of_another_users_process():
    program = (
        "import os, time\nos.setgroups([]); os.setgid(1234); os.setuid(1234)\nprint('ready', flush=True)\ntime.sleep(60)\n"
    )
    target = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    try:
        assert target.stdout.readline() == "ready\n"
        code, sentence, fix = looked_at_by_nobody(target.pid)
        assert (code, fix) == ("other_user", "run as that user, or with sudo")
        assert "belongs to uid 1234, you are uid 65534" in sentence
    finally:
        target.kill()
        target.wait()


@pytest.mark.skipif(not is_root, reason="needs root to become somebody else")
@pytest.mark.parametrize(
    ("folder_mode", "socket_mode", "closed"), [(0o700, 0o666, "f"), (0o755, 0o600, "f/s"), (0o755, 0o666, "")]
)
def test_a_daemon_that_the_jobs_user_cannot_come_to(folder_mode, socket_mode, closed):
    """By the mode bits as by the kernel: the job itself tries."""
    with tempfile.TemporaryDirectory(prefix="gw") as top, socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        os.chmod(top, 0o755)
        folder = Path(top, "f")
        folder.mkdir()
        listener.bind(str(folder / "s"))
        listener.listen()
        os.chmod(folder / "s", socket_mode)
        os.chmod(folder, folder_mode)
        program = (
            "import os, socket, sys, time\nos.setgroups([]); os.setgid(1234); os.setuid(1234)\n"
            "one = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)\n"
            "print(one.connect_ex(sys.argv[1]), flush=True)\ntime.sleep(60)"
        )
        target = subprocess.Popen([sys.executable, "-c", program, str(folder / "s")], stdout=subprocess.PIPE, text=True)
        try:
            assert (int(target.stdout.readline()) == 0) == (closed == "")
            found = reach.closed_to(read_process(target.pid), str(folder / "s"))
            assert found == (str(Path(top, closed)) if closed else "")
        finally:
            target.kill()
            target.wait()


@pytest.mark.skipif(not is_root, reason="what root is told")
@pytest.mark.parametrize("pid", [1, 2])
def test_root_is_not_told_to_use_sudo(pid):
    if not os.path.exists(f"/proc/{pid}"):
        pytest.skip("a namespace without it: only root of the whole machine sees one")
    for finding in check(read_process(pid)):
        assert "sudo" not in finding.fix
        assert finding.sentence


@pytest.mark.skipif(not is_root, reason="needs root to start a process of somebody else's")
def test_a_process_that_forbids_it_is_told_apart_from_a_foreign_one():
    program = f"import ctypes, mmap, os, sys, tempfile, time\n{BECOME_NOBODY}\nsys.argv = ['x', 'undumpable']\n"
    program += (TARGETS / "fake_torch.py").read_text()
    target = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    try:
        assert target.stdout.readline() == "ready\n"
        assert os.stat(f"/proc/{target.pid}/maps").st_uid == 0  # the kernel gives it to root: that is how it is told
        assert looked_at_by_nobody(target.pid)[0] == "not_dumpable"
    finally:
        target.kill()
        target.wait()


def test_a_launcher_names_its_ranks(tmp_path):
    shutil.copy(TARGETS / "fake_torch.py", tmp_path / "rank.py")
    launcher = tmp_path / "torchrun"
    launcher.write_text(
        f"import subprocess, sys\nrank = subprocess.Popen([sys.executable, {str(tmp_path / 'rank.py')!r}], "
        "env={'RANK': '0', 'WORLD_SIZE': '1', 'PATH': '/usr/bin'})\nrank.wait()\n"
    )
    started = subprocess.Popen([sys.executable, str(launcher)], stdout=subprocess.PIPE, text=True)
    try:
        assert started.stdout.readline() == "ready\n"
        finding = only_finding(started.pid)
        [rank] = children(started.pid)
        assert finding.code == "launcher"
        assert f"--tree {started.pid}" in finding.fix
        assert str(rank) in finding.fix
        assert read_process(rank).ranks == {"RANK": "0", "WORLD_SIZE": "1"}
        assert {started.pid, rank} <= {process.pid for process in python_processes()}
    finally:
        os.kill(children(started.pid)[0], signal.SIGKILL)
        started.wait(10)


def test_a_secret_among_the_arguments_is_in_no_title(launch):
    process = read_process(launch("busy.py", "run", "--token=canary-5c1d").pid)
    assert "canary" not in process.title


def test_an_argument_that_is_called_like_a_launcher_makes_none(launch):
    assert not read_process(launch("busy.py", "run", "accelerate").pid).launcher
