"""Looks like a training process to whoever reads /proc: maps a file called libtorch_python. Options: undumpable, module."""

import ctypes
import mmap
import os
import sys
import tempfile
import time
import types

folder = tempfile.mkdtemp()
path = os.path.join(folder, "libtorch_python.so")
with open(path, "wb") as file:
    file.write(bytes(4096))
with open(path, "rb") as file:
    mapped = mmap.mmap(file.fileno(), 4096, prot=mmap.PROT_READ)
os.unlink(path)
os.rmdir(folder)
if "undumpable" in sys.argv:
    ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)
if "module" in sys.argv:
    sys.modules["torch"] = types.ModuleType("torch")
print("ready", flush=True)
end = time.monotonic() + 60
while time.monotonic() < end:
    time.sleep(0.01)
