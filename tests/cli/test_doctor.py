"""`gpuwatch doctor` looks at the real machine: each check is shown the thing that it must notice."""

import json
import socket

import pytest

from tests.running_daemon import RunningDaemon

CHECKS = [
    "hooks",
    "torch",
    "kernel",
    "memfd",
    "socket",
    "port",
    "logdir",
    "driver",
    "sampling",
    "ptrace",
    "prometheus",
    "tensorboard",
]


def checked(result):
    rows = json.loads(result.stdout)
    assert [row["check"] for row in rows] == CHECKS
    assert all(row["fix"] for row in rows if row["state"] == "fail")
    return {row["check"]: row for row in rows}


@pytest.fixture
def doctor(gpuwatch):
    return lambda *arguments, **options: checked(gpuwatch("doctor", "--json", *arguments, **options))


def test_a_machine_on_which_gpuwatch_works(gpuwatch):
    result = gpuwatch("doctor")
    assert result.returncode == 0, result.stdout
    lines = [line.split() for line in result.stdout.splitlines()]
    states = {line[1]: line[0] for line in lines if line[0] in {"ok", "note", "FAIL"}}
    assert [*states] == CHECKS
    for name in ("hooks", "torch", "kernel", "memfd", "socket", "logdir", "tensorboard"):
        assert states[name] == "ok", result.stdout
    assert "\x1b" not in result.stdout


def test_a_logdir_that_cannot_be_written(gpuwatch, tmp_path):
    (tmp_path / "file").write_text("")
    result = gpuwatch("doctor", "--json", "--logdir", "file/runs")
    assert result.returncode == 1
    assert checked(result)["logdir"]["state"] == "fail"


def test_a_socket_folder_that_others_may_write(doctor, tmp_path, environ):
    environ = {**environ, "GPUWATCH_SOCKET": str(tmp_path / "open" / "s")}
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    assert doctor(env=environ)["socket"]["fix"] == f"chmod 700 {tmp_path / 'open'}"
    (tmp_path / "open").chmod(0o700)
    assert doctor(env=environ)["socket"]["state"] == "ok"


def test_a_path_too_long_for_a_socket(doctor, tmp_path, environ):
    row = doctor(env={**environ, "GPUWATCH_SOCKET": str(tmp_path / ("x" * 100))})["socket"]
    assert (row["state"], "too long for a socket" in row["detail"]) == ("fail", True)


def test_a_daemon_that_answers(doctor, tmp_path, environ):
    with RunningDaemon(tmp_path) as daemon:
        row = doctor(env={**environ, "GPUWATCH_SOCKET": str(daemon.socket)})["socket"]
        assert (row["state"], row["detail"]) == ("ok", f"a daemon answers at {daemon.socket}")


def test_a_port_that_another_program_has(doctor):
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            other.bind(("127.0.0.1", 9877))
        except OSError:  # somebody here has it already, perhaps a daemon
            assert doctor()["port"]["detail"] != "9877 is free"
            return
        other.listen()
        row = doctor()["port"]
    assert (row["state"], row["detail"]) == ("note", "9877 is in use by another program")


def test_hooks_that_do_not_reach_a_child(doctor, environ):
    # Python options in the environment that shut the hooks out, as some sites set them.
    row = doctor(env={**environ, "PYTHONNOUSERSITE": "1", "PYTHONSAFEPATH": "1"})["hooks"]
    assert row["state"] == "ok"
