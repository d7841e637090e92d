"""The machines that the injector is built for."""

from __future__ import annotations

import os

from gpuwatch.attach.machine import Machine
from gpuwatch.attach.machines.aarch64 import Aarch64
from gpuwatch.attach.machines.x86_64 import X86_64

_KNOWN: dict[str, type[Machine]] = {"x86_64": X86_64, "aarch64": Aarch64}


def here() -> Machine | None:
    """This machine, when the injector is built for it."""
    found = _KNOWN.get(os.uname().machine)
    return found() if found else None
