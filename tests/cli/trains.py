"""A training that needs no torch: the hooks' side of the protocol, as the environment of `gpuwatch run` tells it.

python -m tests.cli.trains [exit CODE | raise SIGNAL | wait | between SHELL-COMMAND], the last one with 20 more steps behind it
"""

import os
import signal
import subprocess
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
last = 20
if what == "between":
    subprocess.run(["sh", "-c", values[0]], timeout=60, check=True)
    last, values = 40, ["0"]
    for step in range(21, 41):
        client.ring.write(wire.KIND_STEP, step_record(step, loss=1 / step))
if what == "raise":
    os.kill(os.getpid(), getattr(signal, values[0]))
client.ring.write(wire.KIND_END, wire.END_HEAD.pack(last, 0))
client.send({"t": "bye"})
sys.exit(int(values[0]))
