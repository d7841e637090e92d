"""Pure Python, as busy as it gets; with `sleep N` it sleeps once and says for how long."""

import sys
import time

print("ready", flush=True)
if sys.argv[1:2] == ["sleep"]:
    began = time.monotonic()
    time.sleep(float(sys.argv[2]))
    print("slept", time.monotonic() - began, flush=True)
end = time.monotonic() + 60
count = 0
while time.monotonic() < end:
    count += 1
