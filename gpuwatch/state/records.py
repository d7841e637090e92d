"""The records a training process sends, decoded: what intake writes, the journal keeps and everybody else reads.

`decode` is strict: whatever the bytes, the result is a record or a DecodeError. It allocates nothing that the payload's own
length does not pay for.
"""

from __future__ import annotations

import math
import struct

import msgspec
from gpuwatch_hooks import wire


class DecodeError(ValueError):
    """Bytes that are not a record of a wire version that we speak."""


class StepPart(msgspec.Struct, frozen=True, gc=False):
    """One optimizer's share of one step: `values` holds the wire.STEP_FIELDS that were present (NaN is a value)."""

    step: int
    optimizer: int
    complete: bool
    values: dict[str, float]
    groups: tuple[tuple[float, float], ...]  # (learning rate, weight decay) for each parameter group; NaN: none
    monotonic_ns: int


class TensorRows(msgspec.Struct, frozen=True, gc=False):
    """Statistics of `count` tensors from table index `first`: float32 rows of wire.TENSOR_COLUMNS, flat in `cells`."""

    step: int
    optimizer: int
    family: str
    table_version: int
    first: int
    count: int
    columns: int  # bit i: column i was measured
    cells: bytes  # float32[count * 8], little-endian
    monotonic_ns: int


class HistogramRows(msgspec.Struct, frozen=True, gc=False):
    """log2-magnitude histograms of `count` tensors from table index `first`: u32[count * 64], flat in `buckets`."""

    step: int
    optimizer: int
    family: str
    table_version: int
    first: int
    count: int
    first_exponent: int  # bucket i covers 2**(first_exponent+i) <= |x| < 2**(first_exponent+i+1)
    buckets: bytes
    monotonic_ns: int


class Event(msgspec.Struct, frozen=True, gc=False):
    """Something that the hooks want known: a probe that was switched off, what the governor thinned."""

    step: int
    code: str
    value: float
    text: str
    monotonic_ns: int


class End(msgspec.Struct, frozen=True, gc=False):
    """The process said goodbye; a run without one has crashed or was killed."""

    last_step: int
    reason: str
    monotonic_ns: int


class Names(msgspec.Struct, frozen=True, gc=False):
    """A stretch of a name table: of tensors (with their element counts), parameter groups or optimizers."""

    table: str
    version: int
    first: int
    names: tuple[str, ...]
    numels: tuple[int, ...] = ()


class Scalar(msgspec.Struct, frozen=True, gc=False):
    """A value that the job logged (or wrote with SummaryWriter.add_scalar) under its own tag and on its own step axis."""

    tag: str
    step: int
    value: float
    monotonic_ns: int


class Media(msgspec.Struct, frozen=True, gc=False):
    """Images, a histogram, a figure or text for TensorBoard.

    `data`: images and feature_maps: uint8[shape] in N,H,W,C order; figure: a PNG file; histogram: float64[shape] of
    (left, right, count) rows; text: UTF-8 Markdown.
    """

    kind: str
    tag: str
    step: int
    shape: tuple[int, ...]
    data: bytes
    monotonic_ns: int


class Meta(msgspec.Struct, frozen=True, gc=False):
    """Facts about the run that may change while it lives: precision, framework, hyper-parameters; JSON-like scalars."""

    facts: dict[str, str | int | float | bool]


Record = StepPart | TensorRows | HistogramRows | Event | End | Names | Scalar | Media | Meta

_MAX_STEP = 1 << 48


def decode(kind: int, payload: bytes, monotonic_ns: int) -> StepPart | TensorRows | HistogramRows | Event | End:
    """One ring record of wire version 1; `payload` as written behind the slot header. Raises DecodeError."""
    try:
        if kind == wire.KIND_STEP:
            return _step(payload, monotonic_ns)
        if kind == wire.KIND_TENSORS:
            return _tensors(payload, monotonic_ns)
        if kind == wire.KIND_HISTOGRAMS:
            return _histograms(payload, monotonic_ns)
        if kind == wire.KIND_EVENT:
            return _event(payload, monotonic_ns)
        if kind == wire.KIND_END:
            last_step, reason = wire.END_HEAD.unpack(payload)
            return End(_step_number(last_step), wire.END_REASONS[reason], monotonic_ns)
    except (struct.error, IndexError, UnicodeDecodeError) as error:
        raise DecodeError(f"kind {kind}: {error}") from None
    raise DecodeError(f"unknown record kind {kind}")


def _step_number(step: int) -> int:
    if step > _MAX_STEP:
        raise DecodeError(f"step {step} is not a step")
    return step


def _step(payload: bytes, monotonic_ns: int) -> StepPart:
    step, optimizer, flags, fields, group_count, mask = wire.STEP_HEAD.unpack_from(payload)
    if fields > 64 or group_count > wire.MAX_GROUPS:
        raise DecodeError(f"step record with {fields} fields and {group_count} groups")
    if len(payload) != wire.STEP_HEAD.size + 8 * fields + 16 * group_count:
        raise DecodeError("step record of the wrong length")
    cells = struct.unpack_from(f"<{fields}d", payload, wire.STEP_HEAD.size)
    # A newer hook may know more fields than we do: those are left out, since nobody here could name them.
    values = {name: cells[i] for i, name in enumerate(wire.STEP_FIELDS[:fields]) if mask >> i & 1}
    flat = struct.unpack_from(f"<{2 * group_count}d", payload, wire.STEP_HEAD.size + 8 * fields)
    groups = tuple(zip(flat[::2], flat[1::2], strict=True))
    return StepPart(_step_number(step), optimizer, bool(flags & wire.STEP_COMPLETE), values, groups, monotonic_ns)


def _table(first: int, count: int, rest: int, row_bytes: int, family: int) -> str:
    if first + count > wire.MAX_TENSORS or rest != count * row_bytes:
        raise DecodeError(f"table of {count} rows from {first} in {rest} bytes")
    return wire.FAMILIES[family]


def _tensors(payload: bytes, monotonic_ns: int) -> TensorRows:
    step, optimizer, family, version, first, count, columns = wire.TENSORS_HEAD.unpack_from(payload)
    cells = payload[wire.TENSORS_HEAD.size :]
    name = _table(first, count, len(cells), 4 * len(wire.TENSOR_COLUMNS), family)
    return TensorRows(_step_number(step), optimizer, name, version, first, count, columns, cells, monotonic_ns)


def _histograms(payload: bytes, monotonic_ns: int) -> HistogramRows:
    step, optimizer, family, version, first, count, exponent = wire.HISTOGRAMS_HEAD.unpack_from(payload)
    buckets = payload[wire.HISTOGRAMS_HEAD.size :]
    name = _table(first, count, len(buckets), 4 * wire.HISTOGRAM_BUCKETS, family)
    if not -1200 < exponent < 1200:
        raise DecodeError(f"histogram that starts at 2**{exponent}")
    return HistogramRows(_step_number(step), optimizer, name, version, first, count, exponent, buckets, monotonic_ns)


def _event(payload: bytes, monotonic_ns: int) -> Event:
    step, code, value = wire.EVENT_HEAD.unpack_from(payload)
    text = payload[wire.EVENT_HEAD.size :]
    if len(text) > wire.MAX_EVENT_TEXT_BYTES:
        raise DecodeError("event text too long")
    if math.isnan(value):
        value = 0.0
    return Event(_step_number(step), wire.EVENT_CODES[code], value, text.decode(), monotonic_ns)
