"""One NVML child process, seen from the daemon: started, read, told, killed; never waited for."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import msgspec

from gpuwatch.samplers.heartbeat import Heartbeat
from gpuwatch.samplers.lines import Heard, SampleLine, decode

if TYPE_CHECKING:
    from gpuwatch.config import Sampling
    from gpuwatch.samplers.lines import Line

_PIPE_BYTES = 1 << 20  # a daemon that stands still for minutes must not block its child in a write
_READ_BYTES = 1 << 16
_LONGEST_LINE_BYTES = 8 << 20


class NvmlChild:
    """A child that samples all GPUs but those in `skip`, or `only` some; GPUs by NVML's index."""

    def __init__(
        self, sampling: Sampling, now_ns: int, known: dict[str, int], *, skip: set[int], only: set[int] | None
    ) -> None:
        """`known`: the devices that earlier children told of, UUID -> GPU index."""
        self.skip, self.only = set(skip), None if only is None else set(only)
        self.paused = False
        self.heard = Heard()
        self.heard.devices = {uuid: index for uuid, index in known.items() if self.covers(index)}
        self.started_ns = now_ns
        self.last_line_ns = 0  # CLOCK_MONOTONIC of the last line read; 0: none yet
        self.calm_since_ns = now_ns  # since when it has not been stuck
        self.killed = False
        self.ended_ns = 0  # when it was told to end; 0: it was not
        self._heartbeat = Heartbeat()
        options = {
            "memory_hz": sampling.memory_hz,
            "fast_hz": sampling.fast_hz,
            "dear_seconds": sampling.dear_seconds,
            "slow_seconds": sampling.slow_seconds,
            "gpm": sampling.gpm,
            "heartbeat": self._heartbeat.descriptor,
            "parent": os.getpid(),
            **self._assignment(),
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", "gpuwatch.samplers.nvml_worker", json.dumps(options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=[self._heartbeat.descriptor],
            start_new_session=True,  # Ctrl-C in the daemon's terminal is the daemon's
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._input, self._output = self._process.stdin, self._process.stdout
        os.set_blocking(self._output.fileno(), False)
        os.set_blocking(self._input.fileno(), False)
        fcntl.fcntl(self._output.fileno(), fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        self._unread = b""

    @property
    def pid(self) -> int:
        return self._process.pid

    def fileno(self) -> int:
        """Readable when there are lines, for a selector."""
        return self._output.fileno()

    def covers(self, index: int) -> bool:
        return index in self.only if self.only is not None else index not in self.skip

    def assign(self, *, skip: set[int], only: set[int] | None) -> None:
        """Tells it which GPUs are its own from now on; a child that hangs hears of it when its call returns."""
        self.skip, self.only = set(skip), None if only is None else set(only)
        self.heard.devices = {uuid: index for uuid, index in self.heard.devices.items() if self.covers(index)}
        self._tell()

    def pause(self, *, paused: bool) -> None:
        """Tells it to ask the driver nothing, or to go on; it keeps the driver open meanwhile."""
        self.paused = paused
        self._tell()

    def _tell(self) -> None:
        with contextlib.suppress(OSError):  # it has just died: its successor is started with the same assignment
            os.write(self._input.fileno(), json.dumps(self._assignment()).encode() + b"\n")

    def lines(self, now_ns: int) -> list[Line]:
        """The lines that have come, decoded. A child that writes anything else is killed."""
        try:
            while chunk := os.read(self._output.fileno(), _READ_BYTES):
                self._unread += chunk
                if len(chunk) < _READ_BYTES:  # the pipe is empty: to be told so takes longer than to read a line
                    break
        except BlockingIOError:
            pass
        *whole, self._unread = self._unread.split(b"\n")
        try:
            lines = [decode(line) for line in whole]
        except msgspec.DecodeError:
            self.kill()
            return []
        if len(self._unread) > _LONGEST_LINE_BYTES:
            self.kill()
        if lines:
            self.last_line_ns = now_ns
        for line in lines:
            if isinstance(line, SampleLine):  # one that hung may still tell of GPUs that others have taken over
                line.gpus = [device for device in line.gpus if self.covers(device.index)]
        return lines

    def stuck(self, now_ns: int) -> tuple[float, int, int]:
        """(seconds in the current driver call, 0 when idle; GPU index or NO_DEVICE; heartbeat.PHASES' index)."""
        since_ns, index, phase = self._heartbeat.read()
        return max(0.0, (now_ns - since_ns) / 1e9) if since_ns else 0.0, index, phase

    def exit_status(self) -> int | None:
        """None while it lives, also as a process that a kill cannot end because the driver holds it."""
        return self._process.poll()

    def kill(self) -> None:
        self.killed = True
        self._process.kill()

    def close(self) -> None:
        """Ends it by closing its input, without waiting."""
        with contextlib.suppress(OSError):
            self._input.close()

    def release(self) -> None:
        """Gives back what we hold of a child that has ended, or that we give up."""
        self.close()
        self._output.close()
        self._heartbeat.close()

    def _assignment(self) -> dict[str, object]:
        only = None if self.only is None else sorted(self.only)
        return {"skip": sorted(self.skip), "only": only, "paused": self.paused}
