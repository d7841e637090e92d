"""Media: images, histograms, figures and text, whose data arrive in a memfd of their own."""

from __future__ import annotations

import math
import os

from gpuwatch.intake.decode import MediaMessage
from gpuwatch.intake.descriptors import DescriptorError, check_memfd
from gpuwatch.intake.redaction import clean_text
from gpuwatch.state.records import DecodeError, Media

_PNG = b"\x89PNG\r\n\x1a\n"
_HISTOGRAM_ROW_BYTES = 24  # float64 left, right, count


def read_media(message: MediaMessage, fd: int, max_bytes: int) -> Media:
    """The record that `message` announces, its data copied out of `fd` (which stays the caller's to close).

    Raises DescriptorError for a descriptor that cannot be read safely, DecodeError for data that are not what was announced.
    """
    if message.size_bytes > max_bytes:
        raise DecodeError(f"{message.size_bytes} bytes of media where {max_bytes} are taken")
    # Seals are not needed: the data are copied by pread, which a shrinking file shortens and cannot hurt.
    if check_memfd(fd, max_bytes, seals=0) < message.size_bytes:
        raise DescriptorError("less data than announced")
    data = os.pread(fd, message.size_bytes, 0)
    if len(data) != message.size_bytes:
        raise DescriptorError("less data than announced")
    _check(message, data)
    if message.kind == "text":
        data = _clean_lines(data).encode()
    return Media(message.kind, message.tag, message.step, message.shape, data, message.monotonic_ns)


def _check(message: MediaMessage, data: bytes) -> None:
    shape = message.shape
    if message.kind in {"images", "feature_maps"}:
        sound = len(shape) == 4 and shape[3] in {1, 3, 4} and math.prod(shape) == len(data) > 0
    elif message.kind == "histogram":
        sound = len(shape) == 2 and shape[1] == 3 and shape[0] * _HISTOGRAM_ROW_BYTES == len(data) > 0
    elif message.kind == "figure":
        sound = data.startswith(_PNG)
    else:
        sound = True
    if not sound:
        raise DecodeError(f"{message.kind} of shape {list(shape)} in {len(data)} bytes")


def _clean_lines(data: bytes) -> str:
    """Markdown, line by line: its line ends and tabs are layout, all else that does not print is not."""
    lines = data.decode(errors="replace").replace("\t", "    ").splitlines()
    return "\n".join(clean_text(line, len(line)) for line in lines)
