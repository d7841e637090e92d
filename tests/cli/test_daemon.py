"""`gpuwatch daemon`: starts with its options, and refuses what cannot work with one sentence."""

import os
import signal
import socket
import subprocess
import sys

import pytest

from gpuwatch import announcement, paths
from tests.running_daemon import RunningDaemon, wait_until


def test_it_serves_until_sigterm_and_takes_its_announcement_back(tmp_path, environ):
    place = paths.Path(environ["GPUWATCH_SOCKET"])
    command = [sys.executable, "-m", "gpuwatch", "daemon", "--logdir", "here", "--listen", "127.0.0.1:0"]
    daemon = subprocess.Popen(command, cwd=tmp_path, env=environ, stderr=subprocess.PIPE, text=True)
    try:
        wait_until(lambda: announcement.read(place))
        said = announcement.read(place)
        assert (said.pid, said.logdir) == (daemon.pid, str(tmp_path / "here"))
        assert said.metrics_url.startswith("http://127.0.0.1:")
        assert paths.answers(place)
        daemon.send_signal(signal.SIGTERM)
        _, log = daemon.communicate(timeout=30)
    finally:
        daemon.kill()
    assert daemon.returncode == 0, log
    assert not place.exists()
    assert not announcement.path_beside(place).exists()


def test_wrong_settings_are_refused_with_their_path(gpuwatch, tmp_path, environ):
    (tmp_path / "own.toml").write_text("[daemon]\nlisten = 9877\n")
    for arguments, extra, sentence in (
        (["--config", "own.toml"], {}, "own.toml: daemon.listen must be a text, got 9877"),
        (["--config", "none.toml"], {}, "none.toml: cannot be read: No such file or directory"),
        (["--listen", "nowhere"], {}, '--listen must be ADDRESS:PORT, for example 127.0.0.1:9877, got "nowhere"'),
        ([], {"GPUWATCH_RULES_LOSS_SPIKE_FACTORR": "2"}, "GPUWATCH_RULES_LOSS_SPIKE_FACTORR: unknown key 'factorr'"),
    ):
        result = gpuwatch("daemon", *arguments, env={**environ, **extra})
        assert result.returncode == 2, result.stderr
        assert result.stderr.startswith(f"Error: {sentence}"), result.stderr
        assert len(result.stderr.splitlines()) == 1, result.stderr


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('listen = "nowhere"', 'listen must be ADDRESS:PORT, for example 127.0.0.1:9877, got "nowhere"'),
        ("listen = 9877", "listen must be a text, got 9877"),
        ("log_level = true", "log_level must be one of debug, error, info, warning, got true"),
        ("poll_seconds = 7", "poll_seconds must be a number from 0.01 to 1, got 7"),
    ],
)
def test_a_flag_does_not_hide_what_is_wrong_in_the_file(gpuwatch, tmp_path, text, sentence):
    (tmp_path / "own.toml").write_text(f"[daemon]\n{text}\n")
    result = gpuwatch("daemon", "--config", "own.toml", "--listen", "127.0.0.1:0")
    assert (result.returncode, result.stderr) == (2, f"Error: own.toml: daemon.{sentence}\n")


def test_what_is_taken_or_closed_is_refused_with_the_way_out(gpuwatch, tmp_path, environ):
    (tmp_path / "file").write_text("")
    with RunningDaemon(tmp_path) as daemon, socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        for arguments, sentence in (
            (["--listen", f"127.0.0.1:{port}"], f"cannot listen on 127.0.0.1:{port}: the port is in use"),
            (["--listen", "0.0.0.0:0"], "0.0.0.0"),
            (["--socket", "/nosuchfolder/x.sock", "--listen", "127.0.0.1:0"], "the folder /nosuchfolder is not there"),
            (["--logdir", "file/runs", "--listen", "127.0.0.1:0"], "cannot record to file/runs: Not a directory"),
            (
                ["--socket", str(daemon.socket), "--listen", "127.0.0.1:0"],
                f"another gpuwatch daemon already listens at {daemon.socket}",
            ),
        ):
            result = gpuwatch("daemon", *arguments)
            assert result.returncode == 1, result.stderr
            assert sentence in result.stderr.splitlines()[-1], result.stderr
            assert "Traceback" not in result.stderr
    assert not os.path.exists("/nosuchfolder")
    assert os.listdir(environ["XDG_RUNTIME_DIR"]) in ([], ["gpuwatch.sock.lock"])


@pytest.mark.parametrize("command", ["daemon", "run"])
def test_a_logdir_without_rights(tmp_path, environ, command):
    (tmp_path / "closed").mkdir(mode=0o500)
    # Root may write everywhere, unless it gives up that one right.
    humble = ["setpriv", "--bounding-set=-dac_override", "--inh-caps=-dac_override"] if os.geteuid() == 0 else []
    arguments = ["--logdir", "closed/runs", *(["--", "touch", "started"] if command == "run" else [])]
    result = subprocess.run(
        [*humble, sys.executable, "-m", "gpuwatch", command, *arguments],
        cwd=tmp_path,
        env=environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 1
    assert "closed/runs" in result.stderr.splitlines()[-1]
    assert "Permission denied" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "started").exists()
