"""Places where nobody has tried it: another locale, no home, a read-only /dev/shm, ten thousand tags, names that are no text.

What is wrong with flags, settings, ports and folders is in test_exit_status.py, test_daemon.py, test_run.py and test_doctor.py;
a full disk in ../chaos/test_disk.py.
"""

import ctypes
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.running_daemon import RunningDaemon, wait_until

TRAINS = [sys.executable, "-m", "tests.cli.trains"]
#: Python then reads and writes ASCII, as on a cluster's nodes that nobody has told of a language.
C_LOCALE = {"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@pytest.mark.parametrize(
    "command",
    [["runs"], ["status"], ["alerts"], ["report", "-o", "page.html"], ["report", "-o", "page.md"], ["explain", "loss_spike"]],
    ids=" ".join,
)
def test_in_the_c_locale(gpuwatch, recorder, environ, tmp_path, command):
    recorder.run("digits", steps=40)
    result = gpuwatch(*command, env={**environ, **C_LOCALE}, encoding="utf-8")
    assert result.returncode == 0
    assert result.stdout or result.stderr == "no findings in runs\n"
    assert "Traceback" not in result.stderr
    for page in tmp_path.glob("page.*"):
        assert "digits" in page.read_text(encoding="utf-8")


def test_a_run_in_the_c_locale(gpuwatch, environ):
    """Its name is reduced to what every file system takes; its command's own text passes through."""
    words = "import sys; sys.stdout.buffer.write('gr\\xf6\\xdfe\\n'.encode())"
    result = gpuwatch(
        "run", "--name", "läuft", "--", sys.executable, "-c", words, env={**environ, **C_LOCALE}, encoding="utf-8"
    )
    assert (result.returncode, result.stdout) == (0, "größe\n")
    assert "Traceback" not in result.stderr


def without_home(*command):
    """The command as a user whom /etc/passwd does not know."""
    asked = ["unshare", "--user", "--map-user=12345", "--map-group=12345"]
    if subprocess.run([*asked, "true"], capture_output=True, check=False, timeout=20).returncode:
        pytest.skip("no user namespace may be made here")
    return [*asked, *command]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["runs"], 0, ""),
        (["status"], 1, "Error: "),
        (["run", "--", *TRAINS], 0, "20 steps recorded"),
        (["doctor"], None, ""),
        (["attach", "1"], None, ""),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_without_a_home(tmp_path, environ, arguments, code, said):
    """A container's uid: no HOME, no entry in /etc/passwd, no runtime directory."""
    known = {name: value for name, value in environ.items() if name not in {"HOME", "XDG_RUNTIME_DIR", "GPUWATCH_SOCKET"}}
    result = subprocess.run(
        without_home(sys.executable, "-m", "gpuwatch", *arguments),
        cwd=tmp_path,
        env=known,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert code is None or result.returncode == code, result.stderr
    assert said in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "~").exists()


def test_a_read_only_dev_shm(tmp_path, environ):
    """The ring is a memfd, which needs no room there."""
    command = 'mount -t tmpfs -o ro,size=4k tmpfs /dev/shm && exec "$@"'
    asked = ["unshare", "--mount", "sh", "-c", command, "sh"]
    if subprocess.run([*asked, "true"], capture_output=True, check=False, timeout=20).returncode:
        pytest.skip("only root may mount here")
    result = subprocess.run(
        [*asked, sys.executable, "-m", "gpuwatch", "run", "--", *TRAINS],
        cwd=tmp_path,
        env=environ,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert "20 steps recorded" in result.stderr


TAGS = r"""
import gpuwatch
for number in range(10_000):
    gpuwatch.log("tag%05d" % number, number, 1)
gpuwatch.log("two\nlines \x1b[31m", 2.0, 1)
gpuwatch.log("größe", float("nan"), 1)
gpuwatch.log("", 1.0, 1)
gpuwatch.log("x" * 5000, 1.0, 1)
"""


def test_ten_thousand_tags_and_tags_that_are_no_names(gpuwatch, tmp_path, environ):
    with RunningDaemon(tmp_path) as daemon:
        there = {**environ, "GPUWATCH": "1", "GPUWATCH_SOCKET": str(daemon.socket), "GPUWATCH_RUN": "tags"}
        result = subprocess.run(
            [sys.executable, "-c", TAGS], cwd=tmp_path, env=there, capture_output=True, text=True, timeout=60, check=False
        )
        assert (result.returncode, result.stderr) == (0, "")
        known = wait_until(lambda: next((k for k in daemon.runs().values() if k.run == "tags" and k.status != "live"), None))
        assert daemon.end() == 0
    assert 100 < len(known.scalars) <= 501  # the quota, and one name for all the rest
    assert all(name.isprintable() and len(name) <= 256 for name in known.scalars)
    lost = sum(known.counters.dropped.values()) + known.facts["outbox_dropped"]
    assert len(known.scalars) + lost >= 10_000
    said = gpuwatch("status", "tags", "--logdir", daemon.logdir).stdout
    assert f"{known.facts['outbox_dropped_scalars_waiting']:,} scalars_waiting" in said


def test_a_process_whose_name_is_cut_inside_a_letter(gpuwatch, recorder):
    """The kernel cuts names at 15 bytes: a run's process may be called half an ö."""
    prctl, name = ctypes.CDLL(None).prctl, ctypes.create_string_buffer(16)
    prctl(16, name)  # PR_GET_NAME
    try:
        prctl(15, "trainiere größe".encode()[:15])
        with pytest.raises(UnicodeDecodeError):
            Path(f"/proc/{os.getpid()}/stat").read_text(encoding="utf-8")
        recorder.run("digits", ending=None)
        (run,) = json.loads(gpuwatch("runs", "--json").stdout)
        assert run["run"] == "digits"
    finally:
        prctl(15, name)
