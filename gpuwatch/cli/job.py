"""The user's command as our child: started and signalled so that nobody, neither it nor the terminal, can tell us apart.

It stays in our process group and on our terminal, with our descriptors. So what the terminal (Ctrl-C, Ctrl-Z), `timeout` or
`kill -- -GROUP` send to the group reaches it without us, and what somebody sends to our pid alone is passed on: sentinel.py
tells the two apart.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from gpuwatch.cli.sentinel import Sentinel

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

_PASSED_ON = {
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGTSTP,
    signal.SIGCONT,
}
_WAITED_FOR = _PASSED_ON | {signal.SIGCHLD}
_PR_SET_DUMPABLE = 4


class CannotStartError(Exception):
    """The command could not be started; `code` is what a shell would have exited with."""

    def __init__(self, sentence: str, code: int) -> None:
        super().__init__(sentence)
        self.code = code


class Job:
    """A running command. Blocks the signals it passes on in the calling (main) thread, until release()."""

    def __init__(self, command: Sequence[str], environ: Mapping[str, str]) -> None:
        self._mask = signal.pthread_sigmask(signal.SIG_BLOCK, _WAITED_FOR)
        self._sentinel = Sentinel(_PASSED_ON)
        try:
            self._process = self._spawn(list(command), environ)
        except BaseException:
            self.release()
            raise

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait(self, other_child: Callable[[], None]) -> int:
        """Pass signals on until the command ends; its exit code, or minus the signal that killed it.

        `other_child` is called whenever a child has ended that may not be the command.
        """
        while True:
            status = self._process.poll()
            if status is not None:
                return status
            info = signal.sigwaitinfo(_WAITED_FOR)
            if info.si_signo == signal.SIGCHLD:
                other_child()
            else:
                self._pass_on(signal.Signals(info.si_signo), info)

    def release(self) -> None:
        """Signals mean to this process what they meant before the command was started; those for it alone are forgotten."""
        self._sentinel.close()
        while signal.sigtimedwait(_WAITED_FOR, 0) is not None:
            pass
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)

    def _spawn(self, command: list[str], environ: Mapping[str, str]) -> subprocess.Popen[bytes]:
        mask = self._mask
        try:
            # Not posix_spawn: glibc's leaves its two internal signals ignored in the child. restore_signals (the default)
            # undoes Python's ignoring of SIGPIPE; close_fds=False keeps what our caller opened for the command.
            return subprocess.Popen(
                command,
                env=environ,
                close_fds=False,
                preexec_fn=lambda: signal.pthread_sigmask(signal.SIG_SETMASK, mask),  # noqa: PLW1509  # no threads here
            )
        except FileNotFoundError:
            if Path(command[0]).exists():
                raise CannotStartError(f"{command[0]}: the interpreter named in its first line does not exist", 126) from None
            raise CannotStartError(f"{command[0]}: command not found{_python_hint(command[0])}", 127) from None
        except PermissionError:
            raise CannotStartError(f"{command[0]}: not executable{_python_hint(command[0])}", 126) from None
        except OSError as error:
            if error.errno == errno.ENOEXEC:  # a script without a first line: run by sh, as execvp and every shell do
                command[0] = shutil.which(command[0]) or command[0]
                return self._spawn(["/bin/sh", *command], environ)
            raise CannotStartError(f"{command[0]}: {error.strerror}", 126) from None

    def _pass_on(self, number: signal.Signals, info: signal.struct_siginfo) -> None:
        went_to_all = self._sentinel.has_seen(number)
        if went_to_all:  # sent to us and then to the group (`timeout`): the group's is waiting for us now, and is no other one
            signal.sigtimedwait({number}, 0)
        from_kernel = info.si_code > 0
        if number == signal.SIGHUP and os.getsid(0) == os.getpid():
            from_kernel = False  # a hangup is told to the session's leader alone, and that is us
        if not went_to_all and not from_kernel and not self._is_descendant(info.si_pid):
            os.kill(self._process.pid, number)
        if number == signal.SIGTSTP:
            # Stop as the terminal or the sender wants it, for the shell to see. The default action, not SIGSTOP: the
            # kernel then leaves an orphaned process group running, which nobody could continue.
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
            os.kill(os.getpid(), number)
            signal.pthread_sigmask(signal.SIG_BLOCK, {number})

    def _is_descendant(self, pid: int) -> bool:
        """Whether `pid` is the command or below it: a job that signals its parent does not mean itself."""
        while pid > 1:
            if pid == self._process.pid:
                return True
            try:
                pid = int(Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[1])
            except (OSError, ValueError, IndexError):
                return False
        return False


def end_like(status: int) -> None:
    """End this process as the command ended: with its exit code, or killed by the same signal."""
    if status >= 0:
        raise SystemExit(status)
    number = -status
    sys.stdout.flush()
    sys.stderr.flush()
    ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)  # the core that matters is the command's
    if number != signal.SIGKILL:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
    os.kill(os.getpid(), number)
    raise SystemExit(128 + number)  # we outlived it: as a shell would say it


def _python_hint(command: str) -> str:
    return f"; for a Python script: gpuwatch run -- python {command}" if command.endswith(".py") else ""
