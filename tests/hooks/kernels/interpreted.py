"""The Triton kernel without a device: the product's own source, run by Triton's interpreter (numpy) on CPU memory.

Triton is no dependency of the tests (its wheel unpacks to 700 MB): what needs it is left out, by name, where it is not there.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from gpuwatch_hooks.kernels import triton_source
from gpuwatch_hooks.kernels.fused import Fused

from tests.hooks.kernels.emulated import COUNTS, EmulatedDevice

_folder = tempfile.TemporaryDirectory(prefix="gpuwatch-interpreted-")  # the interpreter reads its file until the end


def absent() -> bool:
    return importlib.util.find_spec("triton") is None


_why_not = "no Triton: it comes with torch for CUDA" if absent() else ""
if torch.cuda.is_available():  # tests/gpu run the real thing there, and a process that has interpreted can no longer compile
    _why_not = "there is a CUDA device"
needed = pytest.mark.skipif(bool(_why_not), reason=_why_not)


@functools.cache
def module():
    """triton_source.SOURCE as a module whose kernels Triton interprets: that is settled when they are defined."""
    file = Path(_folder.name, "interpreted_triton_source.py")
    file.write_text(triton_source.SOURCE)
    before = os.environ.get("TRITON_INTERPRET")
    os.environ["TRITON_INTERPRET"] = "1"
    try:
        spec = importlib.util.spec_from_file_location(file.stem, file)
        found = sys.modules[file.stem] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(found)
        with contextlib.suppress(ImportError):
            importlib.import_module("triton.experimental.gluon")  # a later, lazy import of it would fail
    finally:
        if before is None:
            del os.environ["TRITON_INTERPRET"]
        else:
            os.environ["TRITON_INTERPRET"] = before
    return found


class InterpretedDevice(EmulatedDevice):
    def launch(self, kernel: str, blocks: int, arguments: tuple[int, ...]) -> None:
        self.log.append((kernel, blocks))
        assert len(arguments) == COUNTS[kernel]
        function, fixed, _ = triton_source.KERNELS[kernel]
        getattr(module(), function)[(blocks,)](*arguments, **fixed)


def fused(**options) -> Fused:
    """The Triton kernel on an emulated device."""
    return Fused(InterpretedDevice(**options), {"kernel": "interpreted"})
