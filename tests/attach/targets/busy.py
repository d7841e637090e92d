"""Pure Python, as busy as it gets; with `sleep N` it sleeps once and says for how long, `nap N`: by libc's own call."""

import ctypes
import sys
import time

print("ready", flush=True)
if sys.argv[1:2] == ["sleep"]:
    began = time.monotonic()
    time.sleep(float(sys.argv[2]))
    print("slept", time.monotonic() - began, flush=True)
if sys.argv[1:2] == ["nap"]:
    began = time.monotonic()
    broken_off = ctypes.CDLL(None).usleep(int(float(sys.argv[2]) * 1e6))
    print("interrupted" if broken_off else "slept", time.monotonic() - began, flush=True)
end = time.monotonic() + 600  # a machine may be emulated
count = 0
while time.monotonic() < end:
    count += 1
