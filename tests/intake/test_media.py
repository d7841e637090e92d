"""Media: data that arrive in a descriptor of their own, taken only as announced."""

import os
import struct

import pytest

from gpuwatch.intake.decode import MediaMessage
from gpuwatch.intake.descriptors import DescriptorError
from gpuwatch.intake.media import read_media
from gpuwatch.state.records import DecodeError

PNG = b"\x89PNG\r\n\x1a\n" + bytes(50)
LIMIT = 1 << 20


def memfd(data):
    fd = os.memfd_create("media", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
    os.write(fd, data)
    return fd


def read(kind, data, shape=(), announced=None, limit=LIMIT):
    fd = memfd(data)
    try:
        message = MediaMessage(1, kind, "tag", 3, tuple(shape), len(data) if announced is None else announced, 9)
        return read_media(message, fd, limit)
    finally:
        os.close(fd)


@pytest.mark.parametrize(
    ("kind", "data", "shape"),
    [
        ("images", bytes(range(24)), (2, 2, 2, 3)),
        ("feature_maps", bytes(16), (1, 4, 4, 1)),
        ("histogram", struct.pack("<6d", 0, 1, 5, 1, 2, 7), (2, 3)),
        ("figure", PNG, ()),
        ("text", b"# Title\n\nwords", ()),
        ("text", b"", ()),
    ],
)
def test_media_arrive_as_sent(kind, data, shape):
    media = read(kind, data, shape)
    assert (media.kind, media.tag, media.step, media.shape, media.data, media.monotonic_ns) == (kind, "tag", 3, shape, data, 9)


@pytest.mark.parametrize(
    ("kind", "data", "shape"),
    [
        ("images", bytes(24), (2, 2, 2, 4)),
        ("images", bytes(24), (24,)),
        ("images", bytes(16), (2, 2, 2, 2)),
        ("images", b"", (0, 2, 2, 3)),
        ("feature_maps", bytes(10), (1 << 24, 1 << 24, 1 << 24, 1)),
        ("histogram", bytes(48), (3, 3)),
        ("histogram", bytes(48), (6,)),
        ("histogram", b"", (0, 3)),
        ("figure", b"GIF89a", ()),
    ],
)
def test_data_that_are_not_what_was_announced(kind, data, shape):
    with pytest.raises(DecodeError):
        read(kind, data, shape)


def test_less_than_announced():
    with pytest.raises(DescriptorError, match="less data"):
        read("text", b"abc", announced=4)


def test_more_than_the_limit():
    with pytest.raises(DecodeError, match="where 10 are taken"):
        read("text", bytes(11), limit=10)
    with pytest.raises(DescriptorError, match="at most 10"):
        read("text", bytes(11), announced=5, limit=10)


def test_text_keeps_its_lines_and_loses_its_secrets_and_controls():
    media = read("text", b"a\tb\r\ntoken=abcdef\nc\x00d\xff")
    assert media.data.decode() == "a    b\n[redacted]\nc_d\N{REPLACEMENT CHARACTER}"


def test_descriptors_of_another_kind(tmp_path):
    message = MediaMessage(1, "text", "tag", 1, (), 3, 1)
    (tmp_path / "file").write_bytes(b"abc")
    pipe_read, pipe_write = os.pipe()
    os.write(pipe_write, b"abc")
    candidates = [
        pipe_read,
        os.open("/dev/zero", os.O_RDONLY),
        os.open("/proc/self/stat", os.O_RDONLY),
        os.open(tmp_path, os.O_RDONLY),
    ]
    for fd in candidates:
        with pytest.raises(DescriptorError, match="not a memfd"):
            read_media(message, fd, LIMIT)
    for fd in [*candidates, pipe_write]:
        os.close(fd)
