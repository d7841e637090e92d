"""aarch64 machine code that holds a pattern in every register while it counts down, then says what it still holds.

`spin(in, out, count)`: loads x3-x16, x19-x28 and the vector registers (V0-V31, or Z0-Z31, P0-P15 and FFR) from `in`, counts,
and stores the same to `out`. Given as (assembly, word) pairs, so that an assembler can be asked about them.
"""

import struct

GENERAL = [(number, number + 1) for number in (*range(3, 17, 2), *range(19, 29, 2))]
GENERAL_BYTES = 16 * len(GENERAL)
_SP, _PATTERN, _BASE = 31, 0, 3


def _pair(name, word, first, base, offset, kind="x"):
    text = f"{name} {kind}{first}, {kind}{first + 1}, [{'sp' if base == _SP else f'x{base}'}, #{offset}]"
    return text, word | (offset // 8 & 0x7F) << 10 + 5 | first + 1 << 10 | base << 5 | first


def _scalable(name, word, kind, register, index):
    return f"{name} {kind}{register}, [x3, #{index}, mul vl]", word | index >> 3 << 16 | (
        index & 7
    ) << 10 | _BASE << 5 | register


def _saved(store):
    general, double = (0xA9000000, 0x6D000000) if store else (0xA9400000, 0x6D400000)
    name = "stp" if store else "ldp"
    pairs = [_pair(name, general, first, _SP, 16 * n) for n, first in enumerate(range(19, 29, 2))]
    return pairs + [_pair(name, double, first, _SP, 80 + 16 * n, "d") for n, first in enumerate(range(8, 16, 2))]


def _general(store):
    name, word, base = ("stp", 0xA9000000, 1) if store else ("ldp", 0xA9400000, 0)
    return [_pair(name, word, first, base, 16 * n) for n, (first, _) in enumerate(GENERAL)]


def _base_at(register):
    return [(f"add x3, x{register}, #{GENERAL_BYTES}", 0x91000000 | GENERAL_BYTES << 10 | register << 5 | _BASE)]


def _neon(store):
    name, word = ("st1", 0x4C9F2000) if store else ("ld1", 0x4CDF2000)
    return [(f"{name} {{v{n}.16b-v{n + 3}.16b}}, [x3], #64", word | _BASE << 5 | n) for n in range(0, 32, 4)]


def _sve(store):
    name, vector, predicate = ("str", 0xE5804000, 0xE5800000) if store else ("ldr", 0x85804000, 0x85800000)
    vectors = [_scalable(name, vector, "z", n, n) for n in range(32)] + [("addvl x3, x3, #16", 0x04235203)] * 2
    predicates = [_scalable(name, predicate, "p", n, n) for n in range(16)]
    first_fault = _scalable(name, predicate, "p", 0, 16)
    if store:
        return [*vectors, *predicates, ("rdffr p0.b", 0x2519F000), first_fault]
    return [*vectors, first_fault, ("wrffr p0.b", 0x25289000), *predicates]


def instructions(*, sve):
    """The function as (assembly, word) pairs."""
    vectors = _sve if sve else _neon
    return [
        ("sub sp, sp, #144", 0xD10243FF),
        *_saved(store=True),
        *_base_at(_PATTERN),
        *vectors(store=False),
        *_general(store=False),
        ("subs x2, x2, #1", 0xF1000442),
        ("b.ne .-4", 0x54FFFFE1),
        *_general(store=True),
        *_base_at(1),
        *vectors(store=True),
        *_saved(store=False),
        ("add sp, sp, #144", 0x910243FF),
        ("ret", 0xD65F03C0),
    ]


def machine_code(*, sve):
    """The function as bytes."""
    return b"".join(struct.pack("<I", word) for _, word in instructions(sve=sve))


def state_bytes(vector_bytes):
    """How much `in` and `out` hold; `vector_bytes`: of one scalable register, or 0 for the 128-bit ones."""
    return GENERAL_BYTES + (32 * vector_bytes + 17 * (vector_bytes // 8) if vector_bytes else 32 * 16)
