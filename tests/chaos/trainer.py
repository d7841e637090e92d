"""A training process made of the hooks' real session, without torch: python -m tests.chaos.trainer STEPS STEPS_A_SECOND

It ends after STEPS steps, or at SIGUSR1. Step k carries a TENSORS record and has the loss k; each tenth step logs the scalar
"tenth" with value k. Prints "ready" once it records and, at its end, "steps STEPS published SEQUENCE slowest MICROSECONDS".
"""

import signal
import struct
import sys
import time

from gpuwatch_hooks import wire
from gpuwatch_hooks.session import Session

from tests.intake.conftest import step_record


def train(steps, steps_a_second):
    session = Session()
    assert session.arm()
    stop = []
    signal.signal(signal.SIGUSR1, lambda *_: stop.append(True))
    print("ready", flush=True)
    session.names("tensor", 1, 0, ["fc.weight", "fc.bias"], [6, 2])
    slowest_ns, began = 0, time.monotonic()
    for step in range(1, steps + 1):
        started = time.perf_counter_ns()
        session.write(wire.KIND_TENSORS, wire.TENSORS_HEAD.pack(step, 0, 0, 1, 0, 2, 0xFF), struct.pack("<16f", *[step] * 16))
        session.write(wire.KIND_STEP, step_record(step, loss=float(step)))
        slowest_ns = max(slowest_ns, time.perf_counter_ns() - started)
        if step % 10 == 0:
            session.scalar("tenth", step, float(step))
        time.sleep(max(0.0, began + step / steps_a_second - time.monotonic()))
        if stop:
            break
    published = session.ring.sequence + 1
    session.end("exit")
    print("steps", step, "published", published, "slowest", slowest_ns // 1000, flush=True)


if __name__ == "__main__":
    train(int(sys.argv[1]), float(sys.argv[2]))
