"""The systemd units by systemd's own tools: nothing to complain about, little exposed, and the socket is handed over."""

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from gpuwatch.config import SECTIONS
from gpuwatch.state import summary
from tests.running_daemon import ROOT, wait_until

UNITS = ROOT / "systemd"
INSTALLED = "/opt/gpuwatch/bin/gpuwatch"
USERS_OWN = "%h/.local/bin/gpuwatch"
COMMAND = Path(sys.executable).with_name("gpuwatch")


def tool(*command, **options):
    if shutil.which(command[0]) is None:
        pytest.skip(f"needs {command[0]} (apt-get install systemd)")
    settings = {"capture_output": True, "text": True, "timeout": 60}
    return subprocess.run([*map(str, command)], check=False, **{**settings, **options})


@pytest.fixture
def placed(tmp_path):
    """The units as they would be installed, but for the path of the command, which is this environment's here."""

    def place(*names, replaced=INSTALLED):
        for name in names:
            text = (UNITS / name).read_text()
            (tmp_path / Path(name).name).write_text(text.replace(f"ExecStart={replaced} ", f"ExecStart={COMMAND} "))
        return [tmp_path / Path(name).name for name in names]

    return place


def test_systemd_understands_every_line(placed):
    result = tool("systemd-analyze", "verify", "--man=no", *placed("gpuwatch.service", "gpuwatch.socket"))
    assert (result.returncode, result.stdout + result.stderr) == (0, "")


def test_a_line_that_it_does_not_understand_is_told(placed):
    service, socket = placed("gpuwatch.service", "gpuwatch.socket")
    service.write_text(service.read_text().replace("NoNewPrivileges=", "NoNewPrivilege="))
    result = tool("systemd-analyze", "verify", "--man=no", service, socket)
    assert "NoNewPrivilege" in result.stderr, "it exits 0 all the same: silence is what counts"


def test_the_users_unit_too(placed, tmp_path):
    environ = {**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)}
    units = placed("user/gpuwatch.service", replaced=USERS_OWN)
    result = tool("systemd-analyze", "--user", "verify", "--man=no", *units, env=environ)
    assert (result.returncode, result.stdout + result.stderr) == (0, "")


def exposure(unit):
    result = tool("systemd-analyze", "security", "--offline=true", "--no-pager", unit)
    return float(re.search(r"Overall exposure level for \S+ (\d+\.\d+)", result.stdout)[1])


def test_the_exposure_is_small(placed):
    service, _ = placed("gpuwatch.service", "gpuwatch.socket")
    assert exposure(service) <= 2.0
    without = service.with_name("bare.service")
    without.write_text("".join(line for line in service.open() if not re.match(r"(Protect|Restrict|Capab|SystemCall)", line)))
    assert exposure(without) > 4.0


def test_no_debuggers_rights_and_no_root():
    text = (UNITS / "gpuwatch.service").read_text()
    assert "CapabilityBoundingSet=\n" in text
    assert "AmbientCapabilities=\n" in text
    assert "User=gpuwatch\n" in text
    assert "@debug" not in text
    assert "PTRACE" not in text


def test_the_settings_in_the_unit_are_settings():
    names = re.findall(r"^Environment=GPUWATCH_(\w+?)_(\w+)=", (UNITS / "gpuwatch.service").read_text(), re.MULTILINE)
    assert names
    for section, key in names:
        assert key.lower() in SECTIONS[section.lower()].__struct_fields__


def test_the_user_and_its_folder(tmp_path):
    (tmp_path / "etc").mkdir()
    result = tool("systemd-sysusers", f"--root={tmp_path}", "--dry-run", UNITS / "sysusers.d" / "gpuwatch.conf")
    assert result.returncode == 0, result.stderr
    assert "gpuwatch" in result.stderr
    line = (UNITS / "tmpfiles.d" / "gpuwatch.conf").read_text().split()
    assert line == ["d", "/run/gpuwatch", "0755", "gpuwatch", "gpuwatch", "-"]
    socket = (UNITS / "gpuwatch.socket").read_text()
    assert f"ListenSequentialPacket={line[1]}/gpuwatch.sock\n" in socket
    assert f"ReadWritePaths={line[1]}\n" in (UNITS / "gpuwatch.service").read_text()


@pytest.mark.skipif(os.geteuid() != 0, reason="systemd-tmpfiles gives folders away, which is root's to do")
def test_the_folder_is_made(tmp_path):
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "passwd").write_text("root:x:0:0::/:/bin/sh\ngpuwatch:x:4711:4711::/:/bin/false\n")
    (tmp_path / "etc" / "group").write_text("root:x:0:\ngpuwatch:x:4711:\n")
    result = tool("systemd-tmpfiles", f"--root={tmp_path}", "--create", UNITS / "tmpfiles.d" / "gpuwatch.conf")
    assert result.returncode == 0, result.stderr
    made = (tmp_path / "run" / "gpuwatch").stat()
    assert (made.st_mode & 0o777, made.st_uid, made.st_gid) == (0o755, 4711, 4711)


def test_a_socket_that_systemd_listens_at_is_taken_over(tmp_path):
    """systemd-socket-activate is systemd's own stand-in: it listens, and starts the daemon when somebody calls."""
    if shutil.which("systemd-socket-activate") is None:
        pytest.skip("needs systemd-socket-activate (apt-get install systemd)")
    socket, logdir = tmp_path / "gpuwatch.sock", tmp_path / "runs"
    command = ["systemd-socket-activate", "--seqpacket", f"--listen={socket}", sys.executable, "-m", "gpuwatch", "daemon"]
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("GPUWATCH", "NOTIFY"))}
    passed = [f"--setenv={name}={value}" for name, value in (("PYTHONPATH", str(ROOT)), ("GPUWATCH_SAMPLING_GPUS", "false"))]
    command[1:1] = passed
    with (tmp_path / "log").open("wb") as log:
        options = ["--logdir", str(logdir), "--listen", "127.0.0.1:0"]
        daemon = subprocess.Popen([*command, *options], cwd=tmp_path, env=kept, stderr=log)
        try:
            wait_until(socket.exists)
            talker = [sys.executable, "-m", "tests.intake.talker", str(socket)]
            subprocess.run(talker, cwd=ROOT, timeout=60, check=True)
            wait_until(lambda: [path for path in logdir.rglob("run.json") if summary.decode(path.read_bytes())])
            daemon.send_signal(signal.SIGTERM)
            assert daemon.wait(20) == 0, "it became the daemon, which flushes and ends"
            assert socket.exists(), "the socket is systemd's: it stays for the next daemon"
        finally:
            daemon.kill()
            daemon.wait(20)
    assert f"listening at {socket}" in (tmp_path / "log").read_text()
