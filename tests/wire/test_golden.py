"""Golden frames: what wire version 1 looks like in bytes, for ever.

The files are the contract with jobs that carry older hooks: a change of wire.py that alters a frame needs a new version and a
new folder, never a new file in an old one. `PINNED` holds their checksums, so that rewriting a file does not go unnoticed.
"""

import hashlib
import math
import os
import struct
from pathlib import Path

import pytest
from gpuwatch_hooks import wire
from gpuwatch_hooks.ring import RingWriter

from gpuwatch.state import records

GOLDEN = Path(__file__).parent / "golden" / "v1"
NOW = 123_456_789_012


def _floats(count, start=0.0):
    return struct.pack(f"<{count}d", *(start + i / 4 for i in range(count)))


def _step_full():
    fields = _floats(len(wire.STEP_FIELDS), 1.0)
    fields = fields[:8] + struct.pack("<d", math.inf) + fields[16:]
    mask = (1 << len(wire.STEP_FIELDS)) - 1
    return wire.pack_step(281474976710656, 3, wire.STEP_COMPLETE, mask, fields, [0.1, 0.01, 1e-3, math.nan])


def _tensors(step, optimizer, family, version, first, count, columns):
    cells = struct.pack(f"<{8 * count}f", *((-1) ** i * i / 8 for i in range(8 * count)))
    head = wire.TENSORS_HEAD.pack(step, optimizer, wire.FAMILIES.index(family), version, first, count, columns)
    return head + cells


def _histograms():
    head = wire.HISTOGRAMS_HEAD.pack(12, 0, wire.FAMILIES.index("weight"), 1, 5, 2, wire.HISTOGRAM_FIRST_EXPONENT)
    return head + struct.pack("<128I", *range(127), 0xFFFFFFFF)


def _event(step, code, value, text):
    return wire.EVENT_HEAD.pack(step, wire.EVENT_CODES.index(code), value) + text.encode()


def _end(last_step, reason):
    return wire.END_HEAD.pack(last_step, wire.END_REASONS.index(reason))


_CELLS = struct.unpack("<24f", struct.pack("<24f", *((-1) ** i * i / 8 for i in range(24))))

#: name -> kind, payload as today's code writes it, the record that it must decode to
FRAMES = {
    "step_empty": (
        wire.KIND_STEP,
        wire.pack_step(1, 0, 0, 0, bytes(8 * len(wire.STEP_FIELDS)), ()),
        records.StepPart(1, 0, False, {}, (), NOW),
    ),
    "step_full": (
        wire.KIND_STEP,
        _step_full(),
        records.StepPart(
            281474976710656,
            3,
            True,
            {name: math.inf if i == 1 else 1 + i / 4 for i, name in enumerate(wire.STEP_FIELDS)},
            ((0.1, 0.01), (1e-3, math.nan)),
            NOW,
        ),
    ),
    "tensors_gradient": (
        wire.KIND_TENSORS,
        _tensors(12, 0, "gradient", 1, 0, 3, 0b11111111),
        records.TensorRows(12, 0, "gradient", 1, 0, 3, 0b11111111, struct.pack("<24f", *_CELLS), NOW),
    ),
    "tensors_update_second_table": (
        wire.KIND_TENSORS,
        _tensors(13, 1, "update", 2, 1999, 1, 0b1),
        records.TensorRows(13, 1, "update", 2, 1999, 1, 0b1, struct.pack("<8f", *_CELLS[:8]), NOW),
    ),
    "histograms_weight": (
        wire.KIND_HISTOGRAMS,
        _histograms(),
        records.HistogramRows(12, 0, "weight", 1, 5, 2, -48, struct.pack("<128I", *range(127), 0xFFFFFFFF), NOW),
    ),
    "event_probe_disabled": (
        wire.KIND_EVENT,
        _event(40, "probe_disabled", 3.0, "gradients: ValueError: \N{SNOWMAN}"),
        records.Event(40, "probe_disabled", 3.0, "gradients: ValueError: \N{SNOWMAN}", NOW),
    ),
    "event_optimizer_seen": (
        wire.KIND_EVENT,
        _event(0, "optimizer_seen", math.nan, ""),
        records.Event(0, "optimizer_seen", 0.0, "", NOW),
    ),
    "end_exit": (wire.KIND_END, _end(24, "exit"), records.End(24, "exit", NOW)),
    "end_exception": (wire.KIND_END, _end(0, "exception"), records.End(0, "exception", NOW)),
    "end_detached": (wire.KIND_END, _end(7, "detached"), records.End(7, "detached", NOW)),
}

#: sha256 of each file, so that rewriting one does not go unnoticed
PINNED = {
    "step_empty": "f05929da79cfcfd3f03232151ed18b818e7ea9db04486ffe6c30bd11f658e9dc",
    "step_full": "baa4040cdb72e3d2b1acc8811222f7634d22785817f4b35bdae77da116aa2d46",
    "tensors_gradient": "ce36040e2039fb963cb5fe2da160c74e74196579df72bf928c4882d1aa086859",
    "tensors_update_second_table": "47e2b7deddcba59f38d7b947cc465a099d1d347d6de1f4af3eecd63f8dba6150",
    "histograms_weight": "8d172684e4590a77ff6952e93f22ac6570bc443115dfa6ce55932c94ac34b563",
    "event_probe_disabled": "516832edd199b49b64598fea14797e4c3e4139d835b2af74db70cba4e524fb0f",
    "event_optimizer_seen": "7e93113e5ab34d2e53254c5fb8ee2fe98a99952dbf5a511fd5fa8ed5a3441846",
    "end_exit": "2d324188d271825b0db7ef85e9e8ca38ef1b6fc2b23685ec331a7cfdaaab152a",
    "end_exception": "a00404e44ff32d56dba0db6fd71145001cca43f909e6fa2f4d6cbf46ea4ab298",
    "end_detached": "9b8d406a744c5e6651ad62006d177bbf5b6ab7f5f6d02ed49cbe2befcafe067e",
}


@pytest.fixture(params=FRAMES)
def name(request):
    return request.param


def test_each_kind_of_record_has_a_frame_and_each_file_is_known():
    assert {kind for kind, _, _ in FRAMES.values()} == {value for key, value in vars(wire).items() if key.startswith("KIND_")}
    assert {path.name for path in GOLDEN.iterdir()} == {f"{name}.bin" for name in FRAMES} == {f"{name}.bin" for name in PINNED}


def test_the_file_is_the_one_that_was_agreed(name):
    assert hashlib.sha256((GOLDEN / f"{name}.bin").read_bytes()).hexdigest() == PINNED[name]


def test_the_ring_still_writes_these_bytes(name, monkeypatch):
    """The frame is a whole slot: sequence 3, CLOCK_MONOTONIC NOW, sizes, checksum and payload."""
    monkeypatch.setattr("gpuwatch_hooks.ring.time.monotonic_ns", lambda: NOW)
    kind, payload, _ = FRAMES[name]
    ring = RingWriter(8, 16384)
    try:
        for _ in range(3):
            assert ring.write(kind, payload[:5], payload[5:])
        base = wire.RING_HEADER_BYTES + 2 * ring.slot_bytes
        frame = os.pread(ring.fd, wire.SLOT_HEADER_BYTES + len(payload), base)
    finally:
        ring.close()
    assert frame == (GOLDEN / f"{name}.bin").read_bytes()


def test_the_daemon_reads_these_bytes(name):
    frame = (GOLDEN / f"{name}.bin").read_bytes()
    (sequence,) = struct.unpack_from("<Q", frame)
    now, size, crc, kind, flags, reserved = wire.SLOT_META.unpack_from(frame, 8)
    payload = frame[wire.SLOT_HEADER_BYTES :]
    assert (sequence, now, size, flags, reserved) == (3, NOW, len(payload), 0, 0)
    assert wire.slot_crc(sequence, now, kind, payload) == crc
    found, expected = records.decode(kind, payload, now), FRAMES[name][2]
    assert type(found) is type(expected)
    assert repr(found) == repr(expected)  # repr, since NaN does not equal itself


def test_a_frame_that_lost_or_gained_a_byte_is_refused(name):
    """Event text may have any length, so that only the end of its head is sure."""
    kind, payload, _ = FRAMES[name]
    longer = payload + b"\0" * wire.MAX_EVENT_TEXT_BYTES + b"\0"
    shorter = payload[: wire.EVENT_HEAD.size - 1] if kind == wire.KIND_EVENT else payload[:-1]
    for wrong in (longer, shorter, b""):
        with pytest.raises(records.DecodeError):
            records.decode(kind, wrong, NOW)
