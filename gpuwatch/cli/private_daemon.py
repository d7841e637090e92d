"""A daemon for one `gpuwatch run`: its own socket, its own log file, gone when the run is."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from gpuwatch import paths

if TYPE_CHECKING:
    from collections.abc import Mapping

DEFAULT_PORT = 9877
#: Imports take half a second on an idle machine; a loaded one may need twenty times that.
READY_SECONDS = 15.0
#: The daemon itself drains for daemon.shutdown_seconds (5) at most.
END_SECONDS = 15.0
_MAX_RESTARTS = 3
_PR_SET_PDEATHSIG = 1
#: sockaddr_un holds 107 bytes, and "/run-01234567.notify" is 20.
_MAX_FOLDER_BYTES = 107 - 20


class DaemonFailedError(Exception):
    """The daemon ended before it was ready; the text is the last thing it said."""


class PrivateDaemon:
    """Started by `start`, which returns once it listens. `socket_path` is for the job's environment."""

    def __init__(self, logdir: Path, key: str, environ: Mapping[str, str]) -> None:
        folder = _socket_folder(logdir, environ)
        self.logdir = logdir
        self.socket_path = folder / f"run-{key}.sock"
        self.log = logdir / "daemon.log"
        self.has_default_port = port_is_free(DEFAULT_PORT)
        self.listen = f"127.0.0.1:{DEFAULT_PORT if self.has_default_port else 0}"
        self.metrics_url = ""
        self._notify_path = folder / f"run-{key}.notify"
        self._environ = dict(environ)
        self._restarts = 0
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it is ready. Raises DaemonFailedError when it ends instead.

        A slow one is waited for no longer than READY_SECONDS: the hooks will find it whenever it comes.
        """
        self._notify_path.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notices:
            notices.bind(str(self._notify_path))
            try:
                self._process = self._spawn()
                try:
                    self._hear(notices, self._process)
                except DaemonFailedError:
                    if not self.has_default_port:
                        raise
                    # Most likely somebody took the port between our look and the daemon's bind, and may have let go since.
                    self._use_any_port()
                    self._process = self._spawn()
                    self._hear(notices, self._process)
            finally:
                self._notify_path.unlink(missing_ok=True)

    def _use_any_port(self) -> None:
        self.has_default_port, self.listen = False, "127.0.0.1:0"

    def look_after(self) -> str:
        """Called when a child has ended: a daemon that died under the run is started again; what happened, or ''."""
        if self._process is None or self._process.poll() is None:
            return ""
        how, self._process = self._process.returncode, None
        if self._restarts >= _MAX_RESTARTS:
            return f"the daemon ended again ({_ending(how)}); training goes on unwatched, its log is {self.log}"
        self._restarts += 1
        self._process = self._spawn()
        return f"the daemon ended ({_ending(how)}) and was started again; its log is {self.log}"

    def end(self) -> str:
        """SIGTERM, so that it drains and flushes, and wait. A warning when it had to be killed, else ''."""
        process, self._process = self._process, None
        if process is None:
            return ""
        process.terminate()
        try:
            process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            return f"the daemon did not end within {END_SECONDS:.0f} s and was killed: the last steps may be missing"
        except KeyboardInterrupt:  # a second Ctrl-C: the user does not want to wait for the last flush
            process.kill()
            process.wait()
            return "the daemon was killed before it had flushed: the last steps may be missing"
        self._tidy()
        return ""

    def _tidy(self) -> None:
        for left in (self.socket_path, self.socket_path.with_name(self.socket_path.name + ".lock")):
            left.unlink(missing_ok=True)

    def _spawn(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-P", "-m", "gpuwatch", "daemon", "--logdir", str(self.logdir)]
        command += ["--socket", str(self.socket_path), "--listen", self.listen]
        prctl, parent = ctypes.CDLL(None).prctl, os.getpid()

        def in_child() -> None:
            signal.pthread_sigmask(signal.SIG_SETMASK, [])  # we block what we pass on to the job
            prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)  # whoever kills us leaves no daemon
            if os.getppid() != parent:
                os._exit(1)

        with self.log.open("ab") as log:  # for what does not go through logging: why it could not start, a crash
            # A session of its own: the terminal's Ctrl-C is for the job.
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**self._environ, "NOTIFY_SOCKET": str(self._notify_path), "GPUWATCH_DAEMON_LOG_FILE": str(self.log)},
                start_new_session=True,
                preexec_fn=in_child,  # noqa: PLW1509  # no threads here
            )

    def _hear(self, notices: socket.socket, process: subprocess.Popen[bytes]) -> None:
        notices.settimeout(0.05)
        deadline = time.monotonic() + READY_SECONDS
        while time.monotonic() < deadline:
            try:
                said = dict(line.partition("=")[::2] for line in notices.recv(4096).decode(errors="replace").splitlines())
            except TimeoutError:
                if process.poll() is not None:
                    self._process = None
                    raise DaemonFailedError(self._last_words()) from None
                continue
            self.metrics_url = said.get("X_GPUWATCH_METRICS", self.metrics_url)
            if self.metrics_url:  # a daemon that has to be started again is found where this one was
                self.listen = self.metrics_url.removeprefix("http://").partition("/")[0]
            if "READY" in said:
                return

    def _last_words(self) -> str:
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines() if self.log.exists() else []
        return (lines[-1] if lines else "it said nothing").removeprefix("Error: ")


def _socket_folder(logdir: Path, environ: Mapping[str, str]) -> Path:
    """A folder of ours alone for the run's socket. Raises OSError.

    $XDG_RUNTIME_DIR may be another session's that has ended, and a container's user may have no home; the log directory,
    which can be written, comes last, since its path may be too long for a socket.
    """
    homeless = {name: value for name, value in environ.items() if name != "XDG_RUNTIME_DIR"}
    places = [paths.user_socket(environ).parent, paths.user_socket(homeless).parent, logdir.absolute() / ".gpuwatch"]
    reasons = []
    for folder in places:
        reason = _unfit(folder)
        if not reason:
            return folder
        reasons.append(f"{folder}: {reason}")
    raise OSError("no place for a socket: " + "; ".join(reasons))


def _unfit(folder: Path) -> str:
    """Why a socket cannot be made in `folder`, which is made when it is missing; '' when it can."""
    if len(os.fsencode(folder)) > _MAX_FOLDER_BYTES:
        return "the path is too long"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
    except OSError as error:
        return error.strerror or str(error)
    if status.st_uid != os.geteuid() or status.st_mode & 0o022:
        return "others may write there"
    return "" if os.access(folder, os.W_OK | os.X_OK) else "it cannot be written"


def port_is_free(port: int) -> bool:
    """Whether 127.0.0.1:`port` can be listened on now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def _ending(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit {code}"


def user_environment() -> dict[str, str]:
    """Our environment without the notification socket: that one is between systemd and us."""
    return {name: value for name, value in os.environ.items() if name != "NOTIFY_SOCKET"}
