"""The NVML child's lines to its parent: what its devices say, with who the processes on them are. lines.py reads them."""

from __future__ import annotations

import json
import os
import time

from gpuwatch.samplers import catalog
from gpuwatch.samplers.process_identity import Identities

TYPE_CHECKING = False
if TYPE_CHECKING:  # importing typing would cost this process a megabyte
    from typing import Any

    from gpuwatch.samplers.slot import Slot

_STDOUT = 1
_RECHECK_LINES = 10  # lines between looks whether a pid was given to another process


class LineWriter:
    """Gathers what belongs into the next line, and writes it to standard output."""

    def __init__(self) -> None:
        self.busy_ns = 0  # spent sampling since the last line
        self.longest_gap_ns = 0  # between two readings of memory
        self.reinits = 0
        self._identities = Identities()
        self._identities_sent: dict[int, tuple[Any, ...]] = {}
        self._xids: dict[int, dict[int, tuple[int, int]]] = {}  # GPU index -> Xid -> (times, wall time of the last in ns)
        self._lines = 0

    def hear_events(self, driver: Any, slots: dict[int, Slot]) -> None:
        """Notes what the driver has reported of our GPUs; of others another child tells."""
        for index, xid, wall_ns in driver.take_events():
            slot = slots.get(index)
            if slot is None:
                continue
            slot.next_slow_ns = 0  # the counters of wear are worth a look now
            if xid:
                known = self._xids.setdefault(index, {})
                known[xid] = (known.get(xid, (0, 0))[0] + 1, wall_ns)

    def sample(self, driver: Any, slots: dict[int, Slot]) -> None:
        """A line with everything since the one before."""
        self.hear_events(driver, slots)
        gpus: list[dict[str, Any]] = []
        pids: set[int] = set()
        for slot in slots.values():
            first = len(gpus)
            if not slot.devices:
                known = slot.known or [(str(slot.index), "")]
                gpus += [{"index": slot.index, "label": label, "uuid": uuid, "down": slot.down} for label, uuid in known]
            for device in slot.devices:
                line = device.report.line(catalog.THROTTLE_BITS)
                pids.update(row[0] for row in line.get("processes", ()))
                gpus.append({"index": slot.index, "label": device.label, "uuid": device.uuid, **line})
                if not device.introduced:
                    gpus[-1]["info"] = device.info
                    device.introduced = True
            xids = self._xids.pop(slot.index, {})
            if xids:  # also of a GPU that is lost: its last Xid says why
                gpus[first]["xids"] = [[xid, times, wall_ns] for xid, (times, wall_ns) in xids.items()]
        self._lines += 1
        identities = self._identities.of(pids, recheck=self._lines % _RECHECK_LINES == 0)
        fresh = {pid: identity for pid, identity in identities.items() if self._identities_sent.get(pid) != identity}
        self._identities_sent = dict(identities)
        self._write({
            "t": "sample",
            "monotonic_ns": time.monotonic_ns(),
            "wall_ns": time.time_ns(),
            "seconds": self.busy_ns / 1e9,
            "memory_gap_seconds": self.longest_gap_ns / 1e9,
            "driver": driver.version,
            "reinits": self.reinits,
            "errors": driver.errors,
            "identities": fresh,
            "gpus": gpus,
        })  # fmt: skip
        self.busy_ns = self.longest_gap_ns = self.reinits = 0
        driver.errors = {}

    def gone(self, code: str, reason: str, *, worked: bool, errors: dict[str, int]) -> None:
        """A line that says that NVML as a whole does not answer."""
        self._write({"t": "gone", "code": code, "reason": reason, "worked": worked, "errors": errors})

    def _write(self, line: dict[str, Any]) -> None:
        data = json.dumps(line, separators=(",", ":"), allow_nan=False).encode() + b"\n"
        while data:
            data = data[os.write(_STDOUT, data) :]
