"""Mutated frames without end: python -m tests.hostile.fuzz [--inputs N] [--seed N]; prints what came of them and what it cost.

Half are control messages, half ring records; those reach their decoder as if their checksum were right, since whoever
writes into the ring also writes the checksum. Anything but a record or a DecodeError ends it.
"""

import argparse
import json
import random
import resource
import struct
import time

from gpuwatch_hooks import wire

from gpuwatch.intake.decode import decode_message
from gpuwatch.state import records
from gpuwatch.state.records import DecodeError
from tests.intake.conftest import step_record
from tests.intake.test_decode import EXAMPLES, mutate

CELLS = struct.pack("<16f", *range(16))
RECORDS = [
    (wire.KIND_STEP, step_record(7)),
    (wire.KIND_STEP, wire.pack_step(3, 0, 1, 0xFFFF, bytes(8 * len(wire.STEP_FIELDS)), [0.1, 0.0, 0.2, float("nan")])),
    (wire.KIND_TENSORS, wire.TENSORS_HEAD.pack(7, 0, 0, 1, 0, 2, 0xFF) + CELLS),
    (wire.KIND_HISTOGRAMS, wire.HISTOGRAMS_HEAD.pack(7, 0, 0, 1, 0, 2, -48) + bytes(512)),
    (wire.KIND_EVENT, wire.EVENT_HEAD.pack(7, 3, 1.5) + "über".encode()),
    (wire.KIND_END, wire.END_HEAD.pack(7, 0)),
]
MESSAGES = [json.dumps(example).encode() for example in EXAMPLES]


def fuzz(inputs, seed):
    """(taken, refused) of `inputs` mutated frames."""
    chance = random.Random(seed)
    taken = 0
    for number in range(inputs):
        try:
            if number % 2:
                kind, payload = chance.choice(RECORDS)
                kind = chance.randrange(8) if chance.random() < 0.05 else kind
                records.decode(kind, mutate(payload, chance), 1)
            else:
                decode_message(mutate(chance.choice(MESSAGES), chance))
        except DecodeError:
            continue
        taken += 1
    return taken, inputs - taken


def resident_kib():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() // 1024


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
    parser.add_argument("--inputs", type=int, default=10_000_000)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    fuzz(20_000, 0)
    before, began = resident_kib(), time.monotonic()
    taken, refused = fuzz(arguments.inputs, arguments.seed)
    seconds = time.monotonic() - began
    print(
        "inputs",
        arguments.inputs,
        "taken",
        taken,
        "refused",
        refused,
        "seconds",
        round(seconds),
        "grown_kib",
        resident_kib() - before,
    )


if __name__ == "__main__":
    main()
