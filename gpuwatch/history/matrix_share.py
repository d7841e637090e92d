"""How much of a step is matrix products and convolutions, which alone mixed precision makes faster by more than their bytes.

From the last trace that `gpuwatch trace` has left in a run's journal. On a GPU by its kernels, each under the operator that
launched it; on a CPU by the operators themselves, of nested ones the outermost.
"""

from __future__ import annotations

import gzip
import io
import re
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from gpuwatch.history.parcels import Parcels
from gpuwatch.history.past import Past

#: Operators whose work is multiplying matrices; `aten::conv2d` and `aten::linear` are not among them, since under autocast
#: they cast their inputs too.
_OPERATOR = re.compile(
    r"aten::(_?(mm|bmm|mv|addmm|addmv|addbmm|baddbmm|addmm_activation|scaled_mm|grouped_mm|int_mm)_?"
    r"|\w*convolution\w*|_?slow_conv\w*|_?conv_depthwise\w*|_nnpack_\w*|mkldnn_\w*linear\w*|_mkldnn_linear\w*"
    r"|_scaled_dot_product_\w+|_(flash|efficient|cudnn)_attention_\w+|(mkldnn|_cudnn|miopen)_rnn\w*)"
)
#: Kernels whose operator is not known: of a compiled graph, or of somebody's own extension.
_KERNEL = re.compile(r"gemm|cutlass|conv|wgrad|dgrad|xmma|flash|fmha|_mm_|triton_tem|nvjet", re.IGNORECASE)
_MAX_TRACE_BYTES = 1 << 30


class MatrixShare(msgspec.Struct, frozen=True):
    ratio: float  # of the step, 0 to 1
    steps: int  # that were traced
    step: int  # the last of them
    on_gpu: bool

    @property
    def most(self) -> float:
        """How many times faster the step could become if they took no time at all (Amdahl's law)."""
        return 1.0 / max(1e-9, 1.0 - self.ratio)


class _Arguments(msgspec.Struct):
    external: Any = msgspec.field(name="External id", default=None)


class _Event(msgspec.Struct):
    name: str = ""
    cat: str = ""
    ph: str = ""
    ts: float = 0.0  # microseconds
    dur: float = 0.0
    pid: int | str = 0
    tid: int | str = 0
    args: _Arguments = msgspec.field(default_factory=_Arguments)


class _Trace(msgspec.Struct):
    traceEvents: list[_Event]  # noqa: N815 - Chrome's name


def of_run(past: Past, directory: Path) -> MatrixShare | None:
    """That of the run's last trace, or None when none was taken, or it cannot be read."""
    taken = [media for media in past.media if media.kind == "trace"]
    if not taken:
        return None
    try:
        parcels = Parcels(directory, "trace")
    except OSError:
        return None
    try:
        found = parcels.next()
    finally:
        parcels.close()
    if not found:
        return None
    usual = [value for value in past.values("step_seconds") if value > 0.0]
    steps = found[-1].shape[0] if found[-1].shape else 1
    try:
        events = _events(found[-1].data)
    except (OSError, EOFError, ValueError, msgspec.MsgspecError):
        return None
    return of_events(events, max(1, steps), found[-1].step, statistics.median(usual) if usual else None)


def of_events(events: Sequence[_Event], steps: int, step: int, usual_seconds: float | None) -> MatrixShare | None:
    """`usual_seconds`: of a step that was not traced; the profiler lengthens steps, and least of all their products."""
    window = next((event.dur for event in events if event.cat == "Trace"), 0.0) / steps
    kernels = [event for event in events if event.cat == "kernel"]
    spent = _kernel_time(kernels, events) if kernels else _operator_time(events)
    step_us = min([length for length in (window, 1e6 * (usual_seconds or 0.0)) if length > 0.0], default=0.0)
    if step_us <= 0.0:
        return None
    return MatrixShare(min(1.0, spent / steps / step_us), steps, step, bool(kernels))


def _events(packed: bytes) -> list[_Event]:
    with gzip.GzipFile(fileobj=io.BytesIO(packed)) as file:
        data = file.read(_MAX_TRACE_BYTES)
    return msgspec.json.decode(data, type=_Trace).traceEvents


def _operator_time(events: Iterable[_Event]) -> float:
    """Microseconds in matrix operators, those inside others left out; threads side by side count as one after the other."""
    found = [event for event in events if event.cat == "cpu_op" and _OPERATOR.fullmatch(event.name)]
    total, ends = 0.0, dict[tuple[int | str, int | str], float]()
    for event in sorted(found, key=lambda event: (event.ts, -event.dur)):
        thread = event.pid, event.tid
        if event.ts >= ends.get(thread, 0.0):
            total += event.dur
            ends[thread] = event.ts + event.dur
    return total


def _kernel_time(kernels: Iterable[_Event], events: Iterable[_Event]) -> float:
    """Microseconds in which some matrix kernel ran; those of several streams at once count once."""
    launched = {event.args.external for event in events if event.cat == "cpu_op" and _OPERATOR.fullmatch(event.name)} - {None}
    found = [kernel for kernel in kernels if kernel.args.external in launched or _KERNEL.search(kernel.name)]
    total, end = 0.0, 0.0
    for kernel in sorted(found, key=lambda kernel: kernel.ts):
        begin, stop = max(kernel.ts, end), kernel.ts + kernel.dur
        if stop > begin:
            total, end = total + stop - begin, stop
    return total
