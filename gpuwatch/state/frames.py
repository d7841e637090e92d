"""The journal's bytes: a segment is a magic and then frames, each with its own length and checksum.

A frame is what one `os.write` may tear, so its checksum covers all of it but the two words in front. Ring records are kept
as they came (kinds 1 to 15, wire.KIND_*); what came over the control socket is kept as MessagePack of its decoded struct,
because JSON has no NaN.
"""

from __future__ import annotations

import struct
import zlib
from typing import Any

import msgspec

from gpuwatch.state import records
from gpuwatch.state.findings import Finding
from gpuwatch.state.identity import Hello

SEGMENT_MAGIC = b"GWJRNL01"
#: length of what follows these two words, crc32 of it; then ring id, sequence, CLOCK_MONOTONIC ns, kind; then the payload
FRAME_HEAD = struct.Struct("<IIQQQH")
_CHECKED_AFTER = 8
_BODY_HEAD_BYTES = FRAME_HEAD.size - _CHECKED_AFTER
#: The longest frame: a media message of 16 MiB and what MessagePack puts around it.
MAX_FRAME_BYTES = (16 << 20) + (64 << 10)

KIND_HELLO = 16
KIND_NAMES = 17
KIND_SCALARS = 18
KIND_MEDIA = 19
KIND_META = 20
KIND_FINDING = 32  # written by the daemon itself; sequence 0
FIRST_CONTROL_KIND = 16

Control = Hello | records.Names | tuple[records.Scalar, ...] | records.Media | records.Meta | Finding
_TYPES: dict[int, Any] = {
    KIND_HELLO: Hello,
    KIND_NAMES: records.Names,
    KIND_SCALARS: tuple[records.Scalar, ...],
    KIND_MEDIA: records.Media,
    KIND_META: records.Meta,
    KIND_FINDING: Finding,
}
_DECODERS: dict[int, msgspec.msgpack.Decoder[Any]] = {kind: msgspec.msgpack.Decoder(kept) for kind, kept in _TYPES.items()}
_encoder = msgspec.msgpack.Encoder()


class Frame(msgspec.Struct, frozen=True, gc=False):
    """One journaled record. `sequence`: the ring's for ring records, the message's `n` for control records (0: has none)."""

    ring_id: int
    sequence: int
    monotonic_ns: int
    kind: int
    payload: bytes

    @property
    def is_control(self) -> bool:
        return self.kind >= FIRST_CONTROL_KIND

    def decode(self) -> records.Record | Control:
        """What was recorded. Raises records.DecodeError: a checksum tells damage, not another version's layout."""
        if self.kind < FIRST_CONTROL_KIND:
            return records.decode(self.kind, self.payload, self.monotonic_ns)
        decoder = _DECODERS.get(self.kind)
        if decoder is None:
            raise records.DecodeError(f"unknown journal kind {self.kind}")
        try:
            decoded: Control = decoder.decode(self.payload)
        except msgspec.MsgspecError as error:
            raise records.DecodeError(f"journal kind {self.kind}: {error}") from None
        return decoded


def control_kind(record: Control) -> int:
    """The journal kind of a control record."""
    for kind, kept in ((KIND_HELLO, Hello), (KIND_NAMES, records.Names), (KIND_MEDIA, records.Media)):
        if isinstance(record, kept):
            return kind
    if isinstance(record, tuple):
        return KIND_SCALARS
    return KIND_META if isinstance(record, records.Meta) else KIND_FINDING


def encode_control(record: Control) -> bytes:
    """The payload of a control record's frame. Raises DecodeError for what MessagePack has no place for."""
    try:
        return _encoder.encode(record)
    except (OverflowError, UnicodeEncodeError) as error:  # an integer beyond 64 bits, half a surrogate pair
        raise records.DecodeError(f"{type(record).__name__}: {error}") from None


def encode(ring_id: int, sequence: int, monotonic_ns: int, kind: int, payload: bytes) -> bytes:
    """The frame's bytes. Raises ValueError for a payload that no reader would accept."""
    length = _BODY_HEAD_BYTES + len(payload)
    if length > MAX_FRAME_BYTES:
        raise ValueError(f"a frame of {length} bytes")
    body = FRAME_HEAD.pack(length, 0, ring_id, sequence, monotonic_ns, kind)[_CHECKED_AFTER:]
    return struct.pack("<II", length, zlib.crc32(payload, zlib.crc32(body))) + body + payload


def whole_frame_bytes(buffer: bytes | bytearray, offset: int) -> int:
    """Bytes that the frame at `offset` takes by its own account; 0 when its length is impossible or not yet there."""
    if len(buffer) - offset < _CHECKED_AFTER:
        return 0
    length = int.from_bytes(buffer[offset : offset + 4], "little")
    return _CHECKED_AFTER + length if _BODY_HEAD_BYTES <= length <= MAX_FRAME_BYTES else 0


def parse(buffer: bytes, offset: int, size: int) -> Frame | None:
    """The frame of `size` bytes at `offset`, or None when it is damaged."""
    stored = int.from_bytes(buffer[offset + 4 : offset + 8], "little")
    if zlib.crc32(memoryview(buffer)[offset + _CHECKED_AFTER : offset + size]) != stored:
        return None
    _, _, ring_id, sequence, monotonic_ns, kind = FRAME_HEAD.unpack_from(buffer, offset)
    return Frame(ring_id, sequence, monotonic_ns, kind, buffer[offset + FRAME_HEAD.size : offset + size])
