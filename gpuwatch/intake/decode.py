"""Control messages, decoded: whatever the bytes, the result is a message or a DecodeError.

The standard library's json reads them, since it alone takes the NaN and Infinity that a diverged run reports. Its depth is
bounded by the interpreter, its integers by 4,300 digits, and its memory by the 64 KiB of a message.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Annotated, Any, Literal

import msgspec
from gpuwatch_hooks import wire

from gpuwatch.intake.redaction import clean_fact, clean_text
from gpuwatch.state.identity import Hello
from gpuwatch.state.records import DecodeError, Meta, Names, Scalar

Number = Annotated[int, msgspec.Meta(ge=1, le=1 << 53)]
Step = Annotated[int, msgspec.Meta(ge=0, le=1 << 48)]
Nanoseconds = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
Rank = Annotated[int, msgspec.Meta(ge=0, lt=1 << 20)]
Index = Annotated[int, msgspec.Meta(ge=0, le=1 << 24)]
Name = Annotated[str, msgspec.Meta(max_length=4 * wire.MAX_NAME_CHARS)]
MAX_FACTS = 256


class HelloMessage(msgspec.Struct, frozen=True):
    """hello, with the geometry of the ring whose descriptor travels with it."""

    hello: Hello
    slot_count: int
    slot_bytes: int


class Numbered(msgspec.Struct, frozen=True):
    """names, scalars or meta number `n`, as the record that the journal keeps."""

    n: int
    record: Names | tuple[Scalar, ...] | Meta


class MediaMessage(msgspec.Struct, frozen=True):
    """media number `n`; its `size_bytes` of data are in the descriptor that travels with it."""

    n: int
    kind: str
    tag: str
    step: int
    shape: tuple[int, ...]
    size_bytes: int
    monotonic_ns: int


class Bye(msgspec.Struct, frozen=True):
    """The hooks have ended their session; everything is in the ring."""


class Command(msgspec.Struct, frozen=True):
    """What another program asks of the job `pid`: a verb of VERBS, and for `set` the settings."""

    verb: str
    pid: int
    settings: dict[str, int | float | bool]


class Ended(msgspec.Struct, frozen=True):
    """`gpuwatch run` says how its command, the process `pid`, ended: its exit code, or minus the signal that killed it."""

    token: str
    pid: int
    status: int


class SamplingRequest(msgspec.Struct, frozen=True):
    """Somebody asks how sampling of the GPUs goes, or to stop it (`release`: and let go of the driver), or to go on."""

    verb: Literal["state", "pause", "resume"]
    release: bool = False


Message = HelloMessage | Numbered | MediaMessage | Bye | Command | Ended | SamplingRequest
VERBS = ("detach", "set", "amp_probe", "trace", "snapshot")


class VersionError(DecodeError):
    """A hello of a wire version that is not ours: refused politely, since nothing is wrong with its sender."""


class _Clock(msgspec.Struct):
    monotonic_ns: Nanoseconds
    wall_ns: Nanoseconds


class _Ring(msgspec.Struct):
    id: int
    slots: Annotated[int, msgspec.Meta(ge=1, le=wire.MAX_SLOTS)]
    slot_bytes: Annotated[int, msgspec.Meta(ge=64, le=wire.MAX_SLOT_BYTES)]


class _Hello(msgspec.Struct):
    run: Name
    clock: _Clock
    ring: _Ring
    token: Name = ""
    attempt_id: Name = ""
    rank: Rank = 0
    local_rank: Rank = 0
    world_size: Annotated[int, msgspec.Meta(ge=1, le=1 << 20)] = 1
    version: Name = ""
    python: Name = ""
    torch: Name | None = None
    framework: Name | None = None
    program: Name | None = None
    device: Name | int | None = None
    ns_pid: Annotated[int, msgspec.Meta(ge=0, le=1 << 31)] = 0


class _Names(msgspec.Struct):
    n: Number
    table: str
    version: Index
    first: Index
    names: list[Name]
    numels: list[Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]] = []


class _Scalars(msgspec.Struct):
    n: Number
    rows: list[tuple[Name, Step, float, Nanoseconds]]


class _Media(msgspec.Struct):
    n: Number
    kind: str
    tag: Name
    step: Step
    shape: Annotated[list[Index], msgspec.Meta(max_length=8)]
    bytes: Annotated[int, msgspec.Meta(ge=0, le=wire.MAX_MEDIA_BYTES)]
    monotonic_ns: Nanoseconds


class _Meta(msgspec.Struct):
    n: Number
    facts: dict[Name, str | int | float | bool | None]


class _Command(msgspec.Struct):
    verb: str
    pid: Annotated[int, msgspec.Meta(ge=1, le=1 << 31)]
    settings: Annotated[dict[Name, int | float | bool], msgspec.Meta(max_length=16)] = {}


class _Ended(msgspec.Struct):
    token: Annotated[str, msgspec.Meta(min_length=8, max_length=4 * wire.MAX_NAME_CHARS)]
    pid: Annotated[int, msgspec.Meta(ge=1, le=1 << 31)]
    status: Annotated[int, msgspec.Meta(ge=-128, le=255)]


def decode_message(data: bytes) -> Message:
    """One message of the control socket. Raises DecodeError, and VersionError for a hello of another wire version."""
    if len(data) > wire.MAX_MESSAGE_BYTES:
        raise DecodeError(f"a message of {len(data)} bytes")
    try:
        return _decode(json.loads(data.decode()))
    except DecodeError:
        raise
    # msgspec.ValidationError, json.JSONDecodeError and UnicodeError are ValueErrors; too deep is a RecursionError.
    except (ValueError, OverflowError, RecursionError) as error:
        raise DecodeError(clean_text(str(error))) from None


def _decode(tree: object) -> Message:
    kind = tree.get("t") if isinstance(tree, dict) else None
    decoder = _DECODERS.get(kind) if isinstance(kind, str) else None
    if decoder is None or not isinstance(tree, dict):
        raise DecodeError(f"no such message: {clean_text(str(kind), 40)}")
    return decoder(tree)


def _hello(tree: dict[str, Any]) -> HelloMessage:
    version = tree.get("wire")
    if not isinstance(version, int):
        raise DecodeError("hello without a wire version")
    if version != wire.WIRE_VERSION:  # before the rest is looked at, which may have another shape
        raise VersionError(f"wire version {str(version)[:20]}; this daemon speaks {wire.WIRE_VERSION}")
    said = msgspec.convert(tree, _Hello)
    if not 0 <= said.ring.id < 1 << 64:
        raise DecodeError("ring id is not 64 bits")
    if said.rank >= said.world_size:
        raise DecodeError(f"rank {said.rank} of {said.world_size}")
    hello = Hello(
        run=clean_text(said.run),
        token=clean_text(said.token),
        rank=said.rank,
        world_size=said.world_size,
        ring_id=said.ring.id,
        monotonic_ns=said.clock.monotonic_ns,
        wall_ns=said.clock.wall_ns,
        local_rank=said.local_rank,
        attempt_id=clean_text(said.attempt_id),
        version=clean_text(said.version, 80),
        python=clean_text(said.python, 80),
        torch=clean_text(said.torch or "", 80),
        framework=clean_text(said.framework or "", 80),
        # The folder a script lies in says more about its user than about the run.
        program=clean_text((said.program or "").rpartition("/")[2], 80),
        device="" if said.device is None else clean_text(str(said.device), 80),
        ns_pid=said.ns_pid,
    )
    return HelloMessage(hello, said.ring.slots, said.ring.slot_bytes)


def _names(tree: dict[str, Any]) -> Numbered:
    said = msgspec.convert(tree, _Names)
    if said.table not in wire.NAME_TABLES:
        raise DecodeError("no such name table")
    if said.numels and len(said.numels) != len(said.names):
        raise DecodeError(f"{len(said.names)} names with {len(said.numels)} sizes")
    names = tuple(clean_text(name) for name in said.names)
    return Numbered(said.n, Names(said.table, said.version, said.first, names, tuple(said.numels)))


def _scalars(tree: dict[str, Any]) -> Numbered:
    said = msgspec.convert(tree, _Scalars)
    return Numbered(said.n, tuple(Scalar(clean_text(tag), step, value, at) for tag, step, value, at in said.rows))


def _media(tree: dict[str, Any]) -> MediaMessage:
    said = msgspec.convert(tree, _Media)
    if said.kind not in wire.MEDIA_KINDS:
        raise DecodeError("no such kind of media")
    return MediaMessage(said.n, said.kind, clean_text(said.tag), said.step, tuple(said.shape), said.bytes, said.monotonic_ns)


def _meta(tree: dict[str, Any]) -> Numbered:
    said = msgspec.convert(tree, _Meta)
    if len(said.facts) > MAX_FACTS:
        raise DecodeError(f"{len(said.facts)} facts")
    facts = {clean_text(key, 80): clean_fact(key, value) for key, value in said.facts.items() if value is not None}
    return Numbered(said.n, Meta(facts))


def _bye(_tree: dict[str, Any]) -> Bye:
    return Bye()


def _command(tree: dict[str, Any]) -> Command:
    said = msgspec.convert(tree, _Command)
    if said.verb not in VERBS:
        raise DecodeError("no such verb")
    if "t" in said.settings:
        raise DecodeError("a setting may not be called t")
    return Command(said.verb, said.pid, said.settings)


def _ended(tree: dict[str, Any]) -> Ended:
    said = msgspec.convert(tree, _Ended)
    return Ended(clean_text(said.token), said.pid, said.status)


def _sampling(tree: dict[str, Any]) -> SamplingRequest:
    return msgspec.convert(tree, SamplingRequest)


_DECODERS: dict[str, Callable[[dict[str, Any]], Message]] = {
    "hello": _hello,
    "names": _names,
    "scalars": _scalars,
    "media": _media,
    "meta": _meta,
    "bye": _bye,
    "command": _command,
    "ended": _ended,
    "sampling": _sampling,
}
