"""A training that needs no torch: the hooks' side of the protocol, as the environment of `gpuwatch run` tells it.

python -m tests.cli.trains [exit CODE | raise SIGNAL | wait]
"""

import os
import signal
import sys
import time

from gpuwatch_hooks import wire

from tests.intake.conftest import Client, step_record

client = Client(os.environ["GPUWATCH_SOCKET"], slot_count=64, slot_bytes=4096)
client.connect(run=os.environ["GPUWATCH_RUN"], token=os.environ["GPUWATCH_TOKEN"])
for step in range(1, 21):
    client.ring.write(wire.KIND_STEP, step_record(step, loss=1 / step))
print("trained", flush=True)
what, *values = [*sys.argv[1:], "exit", "0"]
if what == "wait":
    time.sleep(60)
if what == "raise":
    os.kill(os.getpid(), getattr(signal, values[0]))
client.ring.write(wire.KIND_END, wire.END_HEAD.pack(20, 0))
client.send({"t": "bye"})
sys.exit(int(values[0]))
