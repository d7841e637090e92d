"""Rings that are none: each is refused before it is read, or costs its owner alone; and no descriptor of it stays."""

import fcntl
import mmap
import os
import random
import signal
import socket
import subprocess
import sys
import time

import pytest
from gpuwatch_hooks import wire
from gpuwatch_hooks.ring import RingWriter

from gpuwatch.intake import descriptors, rings
from gpuwatch.intake.descriptors import SEALED_SIZE, DescriptorError
from gpuwatch.intake.rings import RingReader
from tests.intake.conftest import Client
from tests.running_daemon import ROOT, RunningDaemon, wait_until

SLOTS, SLOT_BYTES = 8, 4096
SIZE = wire.RING_HEADER_BYTES + SLOTS * SLOT_BYTES
HEADER = wire.RING_HEADER.pack(wire.RING_MAGIC, wire.WIRE_VERSION, SLOTS, SLOT_BYTES, wire.RING_HEADER_BYTES, 7)
F_ADD_SEALS = 1033


def memfd(size=SIZE, seals=SEALED_SIZE, header=HEADER, allocate=True, flags=os.MFD_ALLOW_SEALING):
    fd = os.memfd_create("ring", flags)
    if allocate:
        os.posix_fallocate(fd, 0, size)
    else:
        os.ftruncate(fd, size)
    os.pwrite(fd, header, 0)
    fcntl.fcntl(fd, F_ADD_SEALS, seals)
    return fd


def open_pipe():
    read, write = os.pipe()
    os.close(write)
    return read


def open_socket():
    one, other = socket.socketpair()
    other.close()
    return one.detach()


HOSTILE = {
    "a pipe": open_pipe,
    "a socket": open_socket,
    "a device": lambda: os.open("/dev/zero", os.O_RDWR),
    "a file of proc": lambda: os.open("/proc/self/stat", os.O_RDONLY),
    "a directory": lambda: os.open("/", os.O_RDONLY),
    "an event counter": lambda: os.eventfd(0),
    "a path alone": lambda: os.open("/dev/null", os.O_PATH),
    "no seals": lambda: memfd(seals=0),
    "may still be cut": lambda: memfd(seals=descriptors.SEAL_SEAL | descriptors.SEAL_GROW),
    "may still grow": lambda: memfd(seals=descriptors.SEAL_SEAL | descriptors.SEAL_SHRINK),
    "may be sealed further": lambda: memfd(seals=descriptors.SEAL_GROW | descriptors.SEAL_SHRINK),
    "one byte short": lambda: memfd(size=SIZE - 1),
    "one byte long": lambda: memfd(size=SIZE + 1),
    "empty": lambda: memfd(size=4096, header=b""),
    "full of holes": lambda: memfd(allocate=False),
    "beyond the limit": lambda: memfd(size=(64 << 20) + 4096),
    "another magic": lambda: memfd(header=b"GWRING99" + HEADER[8:]),
    "another ring's id": lambda: memfd(header=HEADER[:-8] + bytes(8)),
    "a header that says more slots": lambda: memfd(header=HEADER[:12] + b"\xff\xff\0\0" + HEADER[16:]),
    "a header of zeros": lambda: memfd(header=bytes(32)),
}


@pytest.mark.parametrize("make", HOSTILE.values(), ids=HOSTILE.keys())
def test_what_is_no_ring_is_refused_and_closed(make):
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(DescriptorError):
        RingReader(make(), SLOTS, SLOT_BYTES, 7)
    assert set(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(
    ("slots", "slot_bytes"),
    [
        (0, SLOT_BYTES),
        (-1, SLOT_BYTES),
        (SLOTS, 0),
        (SLOTS, 32),
        (SLOTS, 4097),
        (1 << 40, 1 << 40),
        (wire.MAX_SLOTS + 1, 64),
        (4, 8192),
    ],
)
def test_a_hello_that_lies_about_its_ring(slots, slot_bytes):
    with pytest.raises(DescriptorError):
        RingReader(memfd(), slots, slot_bytes, 7)


def test_huge_pages_are_refused():
    """An empty pool would kill the reader; the check is needed only where the kernel has huge pages at all."""
    try:
        fd = os.memfd_create("ring", os.MFD_ALLOW_SEALING | os.MFD_HUGETLB)
        os.ftruncate(fd, 2 << 20)
    except OSError:
        return
    fcntl.fcntl(fd, F_ADD_SEALS, SEALED_SIZE)
    with pytest.raises(DescriptorError, match="pages"):
        RingReader(fd, SLOTS, SLOT_BYTES, 7)


TRUNCATE = """
import fcntl, mmap, os, sys
sys.path.insert(0, sys.argv[1])
from tests.hostile.test_descriptors import memfd
from gpuwatch.intake import descriptors, rings
if sys.argv[2] == "unprotected":
    rings.check_memfd = lambda fd, max_bytes: os.fstat(fd).st_size
fd = memfd(seals=0)
reader = rings.RingReader(os.dup(fd), 8, 4096, 7)
os.ftruncate(fd, 0)
print(reader.head)
"""


@pytest.mark.parametrize(("how", "status"), [("protected", 1), ("unprotected", -signal.SIGBUS)])
def test_a_ring_that_is_cut_while_it_is_read_kills_only_a_reader_without_the_check(how, status):
    command = [sys.executable, "-c", TRUNCATE, str(ROOT), how]
    ended = subprocess.run(command, capture_output=True, timeout=60, check=False)
    assert ended.returncode == status, ended.stderr


def test_a_ring_that_is_scribbled_over_while_it_is_read():
    """Everything in it changes at random, header and counters too: what is taken was once published."""
    ring = RingWriter(SLOTS, SLOT_BYTES)
    reader = RingReader(os.dup(ring.fd), SLOTS, SLOT_BYTES, ring.ring_id)
    chance = random.Random(4)
    view = memoryview(mmap.mmap(ring.fd, ring.size_bytes))
    believed = set()
    for round_number in range(4000):
        ring.write(1, b"payload %d" % round_number)
        for _ in range(chance.randint(1, 8)):
            at = chance.choice([chance.randrange(wire.RING_HEADER_BYTES), chance.randrange(ring.size_bytes), 64, 128])
            view[at : at + 8] = chance.randbytes(len(view[at : at + 8]))
        try:
            records = reader.read()
        except DescriptorError:  # the head was hit, and says what no head can say
            records = []
        assert len(records) <= rings.BATCH_SLOTS
        believed |= {record.payload.split()[0] for record in records}
        reader.drops()
        if chance.random() < 0.1:
            ring._words[wire.HEAD_WORD] = ring.sequence
            reader.seek(max(0, ring.sequence - 5))
    assert believed == {b"payload"}
    reader.close()


def test_a_hole_punched_into_a_ring_reads_as_nothing():
    ring = RingWriter(SLOTS, SLOT_BYTES)
    reader = RingReader(os.dup(ring.fd), SLOTS, SLOT_BYTES, ring.ring_id)
    ring.write(1, b"x")
    subprocess.run(
        ["fallocate", "-p", "-o", "0", "-l", str(ring.size_bytes), f"/proc/{os.getpid()}/fd/{ring.fd}"], check=True, timeout=20
    )
    assert reader.head == 0
    assert reader.read() == []
    reader.close()


def test_a_daemon_outlives_them_all_and_serves_an_honest_process_meanwhile(tmp_path):
    with RunningDaemon(tmp_path) as daemon:
        descriptors_before = len(os.listdir(f"/proc/{daemon.process.pid}/fd"))
        for make in HOSTILE.values():
            hostile = Client(daemon.socket, SLOTS, SLOT_BYTES).dial()
            fd = make()
            hello = hostile.hello()
            hello["ring"]["id"] = 7
            hostile.send(hello, fd)
            os.close(fd)
            said = []
            wait_until(lambda: said.extend(hostile.heard()) or None in said)  # noqa: B023
            assert said[0]["t"] == "refuse"
            hostile.close()
            hostile.ring.close()
        honest = Client(daemon.socket).connect()
        honest.step(1)
        began = time.monotonic()
        wait_until(lambda: daemon.runs() and daemon.runs()["digits"].step == 1)
        assert time.monotonic() - began < 5
        assert daemon.metrics()['gpuwatch_component_up{component="intake"}'] == 1
        honest.close()
        honest.ring.close()
        wait_until(lambda: len(os.listdir(f"/proc/{daemon.process.pid}/fd")) <= descriptors_before + 12)
        assert daemon.end() == 0
