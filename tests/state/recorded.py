"""Records as the hooks write them, and a clock that moves when told to."""

from __future__ import annotations

from array import array

from gpuwatch_hooks import wire

from gpuwatch.state.identity import Hello, Identity

SECOND_NS = 10**9


def hello(**claims: object) -> Hello:
    defaults = {"run": "digits", "token": "t", "rank": 0, "world_size": 1, "ring_id": 7}
    return Hello(**{**defaults, "monotonic_ns": 5 * SECOND_NS, "wall_ns": 10**18, **claims})


def identity(uid: int = 1000, pid: int = 42, start_ticks: int = 99) -> Identity:
    return Identity(uid, pid, start_ticks)


def step_payload(
    step: int, values: dict[str, float], optimizer: int = 0, complete: bool = True, groups: tuple[float, ...] = (0.1, 0.0)
) -> bytes:
    """A KIND_STEP payload with exactly these fields present."""
    fields = array("d", [0.0] * len(wire.STEP_FIELDS))
    mask = 0
    for name, value in values.items():
        fields[wire.STEP_FIELD_INDEX[name]] = value
        mask |= 1 << wire.STEP_FIELD_INDEX[name]
    return wire.pack_step(step, optimizer, wire.STEP_COMPLETE if complete else 0, mask, fields, groups)


def tensors_payload(step: int, norms: list[float], family: int = 0, optimizer: int = 0, first: int = 0) -> bytes:
    """A KIND_TENSORS payload: rows with these norms, all other statistics zero."""
    cells = array("f", [0.0] * (8 * len(norms)))
    cells[0::8] = array("f", norms)
    return wire.TENSORS_HEAD.pack(step, optimizer, family, 1, first, len(norms), 0xFF) + cells.tobytes()


def slots(
    payloads: list[tuple[int, bytes]], first: int = 1, start_ns: int = 5 * SECOND_NS
) -> list[tuple[int, int, int, bytes]]:
    """Ring records (sequence, monotonic ns, kind, payload), 100 ms apart."""
    return [(first + i, start_ns + (first + i) * 10**8, kind, payload) for i, (kind, payload) in enumerate(payloads)]


def steps(first: int, last: int, **values: float) -> list[tuple[int, int, int, bytes]]:
    """The slots of simple steps first..last; a step's number is also its sequence."""
    return slots([(wire.KIND_STEP, step_payload(n, {"loss": 1.0 / n, **values})) for n in range(first, last + 1)], first)


class Clock:
    """A monotonic clock that moves when told to."""

    def __init__(self) -> None:
        self.ns = 10 * SECOND_NS

    def __call__(self) -> int:
        return self.ns

    def sleep(self, seconds: float) -> None:
        self.ns += int(seconds * SECOND_NS)
