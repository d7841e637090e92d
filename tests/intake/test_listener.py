"""The control socket: where it may lie, who else may be there, and what is left of it afterwards."""

import os
import socket
import stat
import subprocess
import sys
import threading

import pytest

from gpuwatch import paths
from gpuwatch.intake import listener
from gpuwatch.intake.listener import ListenError, adopt, bind

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))


def test_a_users_socket_and_its_directory_are_the_users_alone(tmp_path):
    path = tmp_path / "new" / "gpuwatch.sock"
    door = bind(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    door.close()
    assert not path.exists()


def test_the_nodes_socket_is_open_to_all_and_its_directory_is_not_writable(tmp_path, monkeypatch):
    monkeypatch.setattr(listener, "SYSTEM_DIRECTORY", tmp_path / "gpuwatch")
    path = tmp_path / "gpuwatch" / "gpuwatch.sock"
    before = os.umask(0o077)
    try:
        door = bind(path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666
    assert not path.parent.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    door.close()


def test_a_caller_gets_in(tmp_path):
    door = bind(tmp_path / "s")
    assert door.accept() is None
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as caller:
        caller.connect(str(tmp_path / "s"))
        accepted = door.accept()
        assert accepted.getblocking() is False
        accepted.close()
    door.close()


def test_a_dead_daemons_socket_is_taken_over(tmp_path):
    path = tmp_path / "s"
    dead = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    dead.bind(str(path))
    dead.listen()
    dead.close()
    assert path.exists()
    bind(path).close()


def test_a_living_daemons_socket_is_not(tmp_path):
    path = tmp_path / "s"
    alive = bind(path)
    with pytest.raises(ListenError, match="another gpuwatch daemon already listens at"):
        bind(path)
    assert paths.answers(path)
    alive.close()


def test_nor_is_that_of_one_that_has_no_lock(tmp_path):
    """An older daemon, or somebody else's server: it answers, so it stays."""
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as other:
        other.bind(str(path))
        other.listen()
        with pytest.raises(ListenError, match="already listens"):
            bind(path)
    assert path.exists()


def test_a_socket_with_a_full_backlog_is_alive(tmp_path):
    path = tmp_path / "s"
    callers = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as busy:
        busy.bind(str(path))
        busy.listen(1)
        for _ in range(2):
            caller = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            caller.setblocking(False)
            caller.connect(str(path))
            callers.append(caller)
        assert paths.answers(path)
        for caller in callers:
            caller.close()


def test_only_one_of_many_that_start_together_gets_the_socket(tmp_path):
    path, doors, refusals = tmp_path / "s", [], []
    barrier = threading.Barrier(8)

    def start():
        barrier.wait()
        try:
            doors.append(bind(path))
        except ListenError as error:
            refusals.append(error)

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert (len(doors), len(refusals)) == (1, 7)
    assert paths.answers(path)
    doors[0].close()


def test_a_daemon_that_has_the_lock_and_not_yet_the_socket_is_respected(tmp_path):
    """Between looking and binding: without the lock two daemons would both find the path free."""
    path = tmp_path / "s"
    lock_fd = listener._lock(path)
    with pytest.raises(ListenError, match="already listens"):
        bind(path)
    os.close(lock_fd)
    bind(path).close()


@pytest.mark.parametrize(
    "make", [lambda path: path.write_text("data"), lambda path: path.mkdir(), lambda path: path.symlink_to("x")]
)
def test_what_is_not_a_socket_is_left_alone(tmp_path, make):
    path = tmp_path / "s"
    make(path)
    with pytest.raises(ListenError, match="is not a socket"):
        bind(path)
    assert path.is_symlink() or path.exists()


def test_a_directory_that_others_may_write_to_is_refused(tmp_path):
    tmp_path.chmod(0o777)
    with pytest.raises(ListenError, match="writable by others"):
        bind(tmp_path / "s")


def test_a_directory_of_another_user_is_refused(tmp_path, monkeypatch):
    folder = tmp_path / "theirs"
    folder.mkdir(0o755)
    if os.geteuid() == 0:
        os.chown(folder, 12345, 12345)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(ListenError, match="belongs to another user"):
        bind(folder / "s")


def test_a_path_too_long_for_a_socket(tmp_path):
    with pytest.raises(ListenError, match="107 bytes"):
        bind(tmp_path / ("x" * 120))


def test_a_place_that_cannot_be_had():
    with pytest.raises(ListenError, match="cannot listen here"):
        bind(paths.Path("/proc/gpuwatch/gpuwatch.sock"))


def test_close_leaves_another_daemons_socket(tmp_path):
    path = tmp_path / "s"
    door = bind(path)
    path.unlink()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as successor:
        successor.bind(str(path))
        door.close()
        assert path.exists()


SYSTEMD = """
import os, socket, sys
sys.path.insert(0, sys.argv[1])
from gpuwatch.intake.listener import adopt
environ = {"LISTEN_FDS": sys.argv[2], "LISTEN_PID": str(os.getpid()), "LISTEN_FDNAMES": "x", "HOME": "/"}
try:
    door = adopt(environ)
    print(door and (door.path, door.accept() is None, os.get_inheritable(3), sorted(environ)))
    door and door.close()
except Exception as error:
    print(type(error).__name__, error)
"""


def under_systemd(passed, count="1"):
    """What a daemon does that starts with `passed` as descriptor 3."""
    # dup2 in the child, as systemd does it: subprocess itself would not move a descriptor to number 3.
    move = f"import os, sys; os.dup2({passed.fileno()}, 3); os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    prepared = subprocess.run(
        [sys.executable, "-c", move, "-c", SYSTEMD, ROOT, count],
        pass_fds=[passed.fileno()],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return prepared.stdout.strip() + prepared.stderr.strip()


def test_socket_activation_takes_the_passed_socket_and_leaves_its_path(tmp_path):
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as passed:
        passed.bind(str(path))
        passed.listen()
        assert under_systemd(passed) == f"(PosixPath('{path}'), True, False, ['HOME'])"
    assert path.exists()


def test_socket_activation_with_a_stream_socket_says_what_to_change(tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as passed:
        passed.bind(str(tmp_path / "s"))
        passed.listen()
        assert "ListenSequentialPacket=" in under_systemd(passed)


def test_socket_activation_with_several_sockets_says_so(tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as passed:
        assert "2 sockets were passed where one is expected" in under_systemd(passed, "2")


def test_variables_meant_for_another_process_are_not_taken():
    environ = {"LISTEN_FDS": "1", "LISTEN_PID": "1"}
    assert adopt(environ) is None
    assert environ == {}
