"""Many records through one daemon: memory and descriptors stay where they are. `make soak` sends ten million."""

import os
import struct
import time

import pytest
from gpuwatch_hooks import wire

from tests.intake.conftest import Client, step_record
from tests.running_daemon import RunningDaemon, wait_until

RECORDS = int(os.environ.get("GPUWATCH_SOAK_RECORDS", "60000"))
SLOTS = 4000


@pytest.mark.slow
@pytest.mark.timeout(120 + RECORDS // 2000)
def test_memory_and_descriptors_do_not_grow(tmp_path):
    with RunningDaemon(tmp_path, tensorboard__layers=False) as daemon:
        client = Client(daemon.socket, SLOTS, 1024).connect()
        wait_until(daemon.runs)
        cells = struct.pack("<16f", *range(16))

        def send(first, last):
            """Two records a step, at about six thousand records a second: half of what a busy two-core machine takes."""
            for step in range(first, last + 1):
                client.ring.write(wire.KIND_TENSORS, wire.TENSORS_HEAD.pack(step, 0, 0, 1, 0, 2, 0xFF), cells)
                client.ring.write(wire.KIND_STEP, step_record(step, loss=1 / step))
                if step % 250 == 0:
                    time.sleep(0.08)

        def settled(step):
            wait_until(lambda: daemon.runs()["digits"].step == step, 60)
            time.sleep(1.5)  # TensorBoard's turn
            return daemon.memory_bytes("Rss"), len(os.listdir(f"/proc/{daemon.process.pid}/fd"))

        warm = RECORDS // 4  # steps, of two records each: half of all
        send(1, warm)
        memory_before, descriptors_before = settled(warm)
        send(warm + 1, RECORDS // 2)
        memory_after, descriptors_after = settled(RECORDS // 2)
        grown = RECORDS - 2 * warm
        # One MiB a million records, and four for what an allocator does not give back at once.
        assert memory_after - memory_before < (grown / 1e6 + 4) * (1 << 20)
        assert descriptors_after == descriptors_before
        assert daemon.runs()["digits"].counters.records > 0.9 * RECORDS
        client.close()
        client.ring.close()
