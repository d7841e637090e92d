"""Ring records at the edges of what is allowed: the last value that passes, and the first that is refused."""

from __future__ import annotations

import struct

import pytest
from gpuwatch_hooks import wire

from gpuwatch.state import records

LAST_STEP = 1 << 48
_FIELDS = len(wire.STEP_FIELDS)


def step(number: int = 1, fields: int = _FIELDS, groups: int = 0, mask: int = 1) -> bytes:
    head = wire.STEP_HEAD.pack(number, 0, 0, fields, groups, mask)
    return head + struct.pack(f"<{fields}d", *range(fields)) + struct.pack(f"<{2 * groups}d", *range(2 * groups))


def rows(first: int = 0, count: int = 1, number: int = 1) -> bytes:
    return wire.TENSORS_HEAD.pack(number, 0, 0, 1, first, count, 255) + bytes(32 * count)


def histograms(exponent: int = -48, count: int = 1) -> bytes:
    return wire.HISTOGRAMS_HEAD.pack(1, 0, 0, 1, 0, count, exponent) + bytes(256 * count)


def event(text: bytes, value: float = 0.0) -> bytes:
    return wire.EVENT_HEAD.pack(1, wire.EVENT_CODES.index("notice"), value) + text


#: kind, the last that passes, the first that does not
EDGES = {
    "step number": (wire.KIND_STEP, step(LAST_STEP), step(LAST_STEP + 1)),
    "step number of a table": (wire.KIND_TENSORS, rows(number=LAST_STEP), rows(number=LAST_STEP + 1)),
    "step number of the end": (wire.KIND_END, wire.END_HEAD.pack(LAST_STEP, 0), wire.END_HEAD.pack(LAST_STEP + 1, 0)),
    "fields": (wire.KIND_STEP, step(fields=64), step(fields=65)),
    "groups": (wire.KIND_STEP, step(groups=wire.MAX_GROUPS), step(groups=wire.MAX_GROUPS + 1)),
    "rows": (wire.KIND_TENSORS, rows(wire.MAX_TENSORS - 1), rows(wire.MAX_TENSORS)),
    "bytes of rows": (wire.KIND_TENSORS, rows(count=3), rows(count=3) + b"\0"),
    "exponent": (wire.KIND_HISTOGRAMS, histograms(1199), histograms(1200)),
    "negative exponent": (wire.KIND_HISTOGRAMS, histograms(-1199), histograms(-1200)),
    "bytes of text": (wire.KIND_EVENT, event(b"x" * wire.MAX_EVENT_TEXT_BYTES), event(b"x" * (wire.MAX_EVENT_TEXT_BYTES + 1))),
    "reason of the end": (
        wire.KIND_END,
        wire.END_HEAD.pack(1, len(wire.END_REASONS) - 1),
        wire.END_HEAD.pack(1, len(wire.END_REASONS)),
    ),
}


@pytest.mark.parametrize("edge", EDGES)
def test_the_last_that_passes_and_the_first_that_does_not(edge: str) -> None:
    kind, passes, refused = EDGES[edge]
    assert records.decode(kind, passes, 5).monotonic_ns == 5
    with pytest.raises(records.DecodeError):
        records.decode(kind, refused, 5)


def test_fields_of_a_newer_hook_are_passed_over() -> None:
    newer = records.decode(wire.KIND_STEP, step(fields=64, mask=(1 << 64) - 1, groups=1), 5)
    assert isinstance(newer, records.StepPart)
    assert newer.values == {name: float(index) for index, name in enumerate(wire.STEP_FIELDS)}
    assert newer.groups == ((0.0, 1.0),)


def test_an_event_has_a_value_that_is_a_number() -> None:
    told = records.decode(wire.KIND_EVENT, event("Größe".encode(), float("nan")), 5)
    assert isinstance(told, records.Event)
    assert (told.value, told.text) == (0.0, "Größe")
