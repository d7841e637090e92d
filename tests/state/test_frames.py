"""What goes into the journal comes out as it was, NaN included, and what is not ours is told from what is."""

from __future__ import annotations

import math

import msgspec
import pytest
from gpuwatch_hooks import wire

from gpuwatch.state import frames
from gpuwatch.state.findings import Finding
from gpuwatch.state.frames import Frame
from gpuwatch.state.records import DecodeError, Media, Meta, Names, Scalar, StepPart
from tests.state.recorded import hello, step_payload

CONTROLS = [
    hello(run="é", wall_ns=2**62),
    Names("tensor", 3, 5, ("a.weight", "b"), (1, 2)),
    (Scalar("acc", 7, -math.inf, 9), Scalar("é", 0, 0.25, 0)),
    Media("images", "input", 4, (1, 2, 2, 3), bytes(range(12)), 8),
    Meta({"precision": "bf16", "lr": 0.5, "amp": True, "n": 3}),
    Finding("loss_spike", "warning", 1, 2, 3, "loss", math.inf, 1.5, "It jumped.", "Look."),
]


@pytest.mark.parametrize("record", CONTROLS, ids=lambda record: type(record).__name__)
def test_control_records_come_back_as_they_were(record: frames.Control) -> None:
    encoded = frames.encode(2**64 - 1, 7, 8, frames.control_kind(record), frames.encode_control(record))
    size = frames.whole_frame_bytes(encoded, 0)
    assert size == len(encoded)
    frame = frames.parse(encoded, 0, size)
    assert frame is not None
    assert (frame.ring_id, frame.sequence, frame.monotonic_ns, frame.is_control) == (2**64 - 1, 7, 8, True)
    assert frame.decode() == record


def test_nan_survives() -> None:
    frame = Frame(1, 1, 0, frames.KIND_SCALARS, frames.encode_control((Scalar("x", 1, math.nan, 0),)))
    (scalar,) = frame.decode()
    assert math.isnan(scalar.value)


def test_ring_records_are_decoded_as_they_came() -> None:
    frame = Frame(1, 1, 77, wire.KIND_STEP, step_payload(5, {"loss": 2.0}))
    part = frame.decode()
    assert isinstance(part, StepPart)
    assert (part.step, part.values, part.monotonic_ns) == (5, {"loss": 2.0}, 77)


@pytest.mark.parametrize("payload", [b"", b"\xc1", b"\x80", msgspec.msgpack.encode({"facts": {"a": [1]}}), b"\x91" * 2000])
@pytest.mark.parametrize("kind", [frames.KIND_META, frames.KIND_HELLO, frames.KIND_SCALARS, 31, 65535])
def test_anything_else_is_a_decode_error(kind: int, payload: bytes) -> None:
    with pytest.raises(DecodeError):
        Frame(1, 1, 0, kind, payload).decode()


@pytest.mark.parametrize("fact", [2**70, -(2**70), "\ud800"])
def test_a_fact_that_cannot_be_kept_is_a_decode_error(fact: int | str) -> None:
    with pytest.raises(DecodeError, match="Meta"):
        frames.encode_control(Meta({"fact": fact}))


@pytest.mark.parametrize("length", [0, 1, 25, frames.MAX_FRAME_BYTES + 1, 2**32 - 1])
def test_impossible_lengths_are_no_frames(length: int) -> None:
    assert frames.whole_frame_bytes(length.to_bytes(4, "little") + bytes(40), 0) == 0


def test_a_length_that_is_not_there_yet_is_no_frame() -> None:
    assert frames.whole_frame_bytes(b"\x22\0\0", 0) == 0
