"""aarch64: counts down in machine code, a pattern in every register; `spin.py REPORT [sve]` says there how often it held."""

import ctypes
import mmap
import random
import sys
import time

from spin_code import machine_code, state_bytes

PR_SVE_GET_VL = 51
COUNT = 300_000

sve = sys.argv[2:] == ["sve"]
libc = ctypes.CDLL(None)
vector_bytes = libc.prctl(PR_SVE_GET_VL, 0, 0, 0, 0) & 0xFFFF if sve else 0
size = state_bytes(vector_bytes)
pattern = bytearray(random.Random(1).randbytes(size))
if sve:  # the first-fault register only holds ones, then zeros
    pattern[-(vector_bytes // 8) :] = b"\xff" * (vector_bytes // 16) + bytes(vector_bytes // 8 - vector_bytes // 16)
code = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
code.write(machine_code(sve=sve))
spin = ctypes.CFUNCTYPE(None, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_uint64)(
    ctypes.addressof(ctypes.c_char.from_buffer(code))
)
held = ctypes.create_string_buffer(size)
good = bad = 0
print("ready", flush=True)
end = time.monotonic() + 600
with open(sys.argv[1], "w") as report:
    while time.monotonic() < end:
        ctypes.memset(held, 0, size)
        spin(bytes(pattern), ctypes.addressof(held), COUNT)
        if held.raw == bytes(pattern):
            good += 1
        else:
            bad += 1
        report.seek(0)
        report.write(f"{good} {bad}\n")
        report.flush()
