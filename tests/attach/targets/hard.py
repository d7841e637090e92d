"""trains.py in circumstances that make an attach hard: `hard.py CIRCUMSTANCE...`. Commands as there."""

import ctypes
import errno
import faulthandler
import gc
import io
import os
import signal
import struct
import sys
import threading
import time

import torch
import trains

_SECCOMP, _FILTER_MODE, _NO_NEW_PRIVILEGES = 22, 2, 38
_MEMFD_CREATE, _SOCKET = {"x86_64": (319, 41), "aarch64": (279, 198)}[os.uname().machine]


def refuse(*system_calls):
    """Have the kernel answer these with EPERM from now on, as a container's or systemd's filter does."""
    load, equal, answer = 0x20, 0x15, 0x06
    program = [(load, 0, 0, 0)]
    for number in system_calls:
        program += [(equal, 0, 1, number), (answer, 0, 0, 0x00050000 | errno.EPERM)]
    program.append((answer, 0, 0, 0x7FFF0000))
    raw = ctypes.create_string_buffer(b"".join(struct.pack("<HBBI", *line) for line in program))
    filters = ctypes.create_string_buffer(struct.pack("<HxxxxxxQ", len(program), ctypes.addressof(raw)))
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0) == 0
    assert libc.prctl(_SECCOMP, _FILTER_MODE, filters) == 0, os.strerror(ctypes.get_errno())


def without_memfd():
    refuse(_MEMFD_CREATE)


def without_sockets():
    refuse(_SOCKET)


def without_threads():
    """No thread more than there are."""
    import resource

    os.setgroups([])
    os.setgid(4321)
    os.setuid(4321)
    resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))


def collector_off():
    gc.disable()


def collector_frozen():
    gc.collect()
    gc.freeze()


def fault_handler():
    faulthandler.enable()
    faulthandler.dump_traceback_later(0.05, repeat=True, file=open(os.devnull, "w"))  # noqa: SIM115  # for ever


def traced():
    seen = set()

    def trace(frame, event, _argument):
        seen.add(event)
        return trace

    sys.settrace(trace)
    threading.settrace(trace)


def profiled():
    import cProfile

    cProfile.Profile().enable()


def alarms():
    signal.signal(signal.SIGALRM, lambda *_: sum(range(100)))
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)


def many_threads():
    for _ in range(200):
        threading.Thread(target=time.sleep, args=(3600,), daemon=True).start()


def saving():
    """A checkpoint after each step."""
    weights = {"weights": torch.randn(200_000)}
    step = trains.Trainer.step

    def stepped(self, *batch):
        step(self, *batch)
        torch.save({**weights, **self.net.state_dict()}, io.BytesIO())

    trains.Trainer.step = stepped


def undumpable():
    ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)


def write_or_execute():
    """systemd's MemoryDenyWriteExecute, by the kernel's own switch (Linux 6.3)."""
    ctypes.CDLL(None).prctl(65, 1, 0, 0, 0)


if __name__ == "__main__":
    trainer = trains.Trainer("fp32", 0)
    for circumstance in sys.argv[1:]:
        globals()[circumstance]()
    print("ready", flush=True)
    trainer.run()
