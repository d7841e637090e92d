import os
import resource
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.summary.writer.record_writer import RecordWriter

from gpuwatch.exporters import eventfile
from gpuwatch.exporters.eventfile import EventFile, frame, masked_crc, next_name


@pytest.fixture
def folder(tmp_path):
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


def event(step):
    return frame(Event(step=step, wall_time=1.0).SerializeToString())


def steps(folder, name, offset=0):
    return [e.step for e in eventfile.read(folder, name, offset) if not e.file_version]


@given(st.binary(max_size=200))
def test_a_frame_is_what_tensorboards_own_writer_writes(data):
    class Sink:
        written = b""

        def write(self, piece):
            self.written += piece

    sink = Sink()
    RecordWriter(sink).write(data)
    assert frame(data) == sink.written


def test_known_checksum():
    # RFC 3720 gives the CRC-32C of 32 zero bytes: 0x8A9136AA.
    crc = 0x8A9136AA
    assert masked_crc(bytes(32)) == ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def test_a_file_begins_with_its_version_and_is_read_back(folder):
    file = EventFile(folder, wall_ns=1_700_000_000_000_000_000)
    head = next(eventfile.read(folder, file.name))
    assert (head.file_version, head.source_metadata.writer) == ("brain.Event:2", "gpuwatch")
    file.append(event(1) + event(2))
    assert steps(folder, file.name) == [1, 2]
    assert file.length_bytes == os.stat(file.name, dir_fd=folder).st_size
    file.close()


def test_reading_stops_before_what_is_torn_or_damaged(folder, tmp_path):
    file = EventFile(folder)
    file.append(event(1))
    start = file.length_bytes
    file.append(event(2) + event(3))
    file.close()
    path = tmp_path / file.name
    whole = path.read_bytes()
    assert steps(folder, file.name, start) == [2, 3]
    for cut in range(start, len(whole)):
        path.write_bytes(whole[:cut])
        assert steps(folder, file.name) == ([1, 2] if cut >= start + len(event(2)) else [1])
    for position in range(start, start + len(event(2))):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 0x40]) + whole[position + 1 :])
        assert steps(folder, file.name) == [1]
    path.write_bytes(whole[:start] + struct.pack("<QI", 1 << 60, masked_crc(struct.pack("<Q", 1 << 60))))
    assert steps(folder, file.name) == [1]  # and no attempt to read 2**60 bytes


def test_names_sort_behind_all_there_are_whatever_the_clock_says():
    names = []
    for seconds in (1_700_000_100, 1_700_000_100, 1_600_000_000, 1_700_000_101, 0):
        names.append(next_name(names, seconds))
    assert names == sorted(names)
    assert len(set(names)) == len(names)
    assert (
        next_name(["events.out.tfevents.1800000000.host.17.0", "other"], 1_700_000_000) > "events.out.tfevents.1800000000.host"
    )


def test_a_name_carries_no_host_and_no_pid(folder):
    assert EventFile(folder, wall_ns=17 * 10**17).name == "events.out.tfevents.1700000000.000000.gpuwatch"


def test_a_link_in_the_place_of_the_file_is_not_followed(folder, tmp_path):
    target = tmp_path / "target"
    os.symlink(target, tmp_path / next_name([], 1_700_000_000))
    file = EventFile(folder, wall_ns=17 * 10**17)
    assert not target.exists()
    assert file.name.endswith(".000001.gpuwatch")


def test_a_write_that_the_kernel_cuts_short_leaves_whole_records(folder):
    file = EventFile(folder)
    file.append(event(1))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (file.length_bytes + 5, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            file.append(event(2) + event(3))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert os.stat(file.name, dir_fd=folder).st_size == file.length_bytes
    file.append(event(4))
    assert steps(folder, file.name) == [1, 4]
    file.close()
