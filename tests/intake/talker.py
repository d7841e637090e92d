"""A process that sends a daemon one of everything: python -m tests.intake.talker SOCKET [STEPS [STEPS_A_SECOND]]"""

import os
import struct
import sys
import time

from gpuwatch_hooks import wire

from tests.intake.conftest import Client, step_record


def memfd(data):
    fd = os.memfd_create("media")
    os.write(fd, data)
    return fd


def talk(path, steps=20, steps_a_second=0.0):
    client = Client(path, slot_count=512, slot_bytes=4096).connect(run="talker")
    client.numbered("names", table="tensor", version=1, first=0, names=["fc.weight", "fc.bias"], numels=[6, 2])
    client.numbered("names", table="group", version=1, first=0, names=["group0"], numels=[])
    client.numbered("meta", facts={"precision": "fp32", "batch_size": 32})
    client.numbered("scalars", rows=[["val/accuracy", 1, 0.5, time.monotonic_ns()]])
    n = client.n = client.n + 1
    text = memfd(b"# Notes")
    at = time.monotonic_ns()
    client.send(
        {"t": "media", "n": n, "kind": "text", "tag": "notes", "step": 1, "shape": [], "bytes": 7, "monotonic_ns": at}, text
    )
    os.close(text)
    for step in range(1, steps + 1):
        cells = struct.pack("<16f", *[0.1 * step] * 16)
        client.ring.write(wire.KIND_TENSORS, wire.TENSORS_HEAD.pack(step, 0, 0, 1, 0, 2, 0xFF), cells)
        buckets = struct.pack("<128I", *range(128))
        client.ring.write(wire.KIND_HISTOGRAMS, wire.HISTOGRAMS_HEAD.pack(step, 0, 0, 1, 0, 2, -48), buckets)
        client.ring.write(wire.KIND_STEP, step_record(step, loss=1 / step))
        if steps_a_second:
            time.sleep(1 / steps_a_second)
    client.ring.write(wire.KIND_EVENT, wire.EVENT_HEAD.pack(steps, 3, 0.0), b"a notice")
    client.ring.write(wire.KIND_END, wire.END_HEAD.pack(steps, 0))
    deadline = time.monotonic() + 30
    acknowledged = 0
    while acknowledged < client.n and time.monotonic() < deadline:
        for message in client.heard():
            acknowledged = message["n"] if message and message["t"] == "ack" else acknowledged
        time.sleep(0.01)
    client.send({"t": "bye"})
    return 0 if acknowledged == client.n else 1


if __name__ == "__main__":
    raise SystemExit(talk(sys.argv[1], int((sys.argv[2:3] or ["20"])[0]), float((sys.argv[3:4] or ["0"])[0])))
