"""The fused kernel's work, cut into chunks: pure functions from the sizes of tensors to the bytes of its tables."""

import itertools
import struct

from .. import wire
from .cuda_source import CHUNK_BYTES, KINDS, PARTIAL_BYTES, TENSOR_BYTES

#: Entries of a chunk, powers of two: few enough for a float32 sum, and enough to be worth a block's beginning and end.
SMALLEST_CHUNK, LARGEST_CHUNK = 1 << 15, 1 << 18
#: Chunks that each processor of the device should get: with fewer the last ones to end leave the others idle.
CHUNKS_A_PROCESSOR = 16
#: A histogram counts in 32 bits.
MAX_ENTRIES = (1 << 32) - 1

_TENSOR = struct.Struct("<QIIII")
_CHUNK = struct.Struct("<QII")
ROW_BYTES = 8 * len(wire.TENSOR_COLUMNS)
HISTOGRAM_BYTES = 4 * wire.HISTOGRAM_BUCKETS


def chunk_entries(total_entries, processors):
    """Entries of a chunk for so many entries in all on a device of so many multiprocessors."""
    wanted = max(1, total_entries // (CHUNKS_A_PROCESSOR * max(1, processors)))
    return min(max(1 << (wanted.bit_length() - 1), SMALLEST_CHUNK), LARGEST_CHUNK)


def kind_of(dtype):
    """The kernel's number for a torch dtype, or None when it does not read that type."""
    return KINDS.get(str(dtype).rpartition(".")[2])


class Layout:
    """Tables of tensors with `numels` entries (ints, 0 allowed) of `kinds` (ints), in chunks of `entries` entries.

    `strides`: where only every k-th entry of a tensor is meant, the k of each; `numels` are then what is left of them.
    """

    def __init__(self, numels, kinds, entries, strides=None):
        tensors, chunks, first = [], [], 0
        for index, (numel, kind, stride) in enumerate(zip(numels, kinds, strides or itertools.repeat(1))):
            count = -(-numel // entries)
            tensors.append(_TENSOR.pack(numel, first, count, kind, stride))
            starts = range(0, numel, entries)
            chunks.extend(_CHUNK.pack(start, min(entries, numel - start), index) for start in starts)
            first += count
        self.count, self.chunks = len(tensors), first
        self.table = b"".join(itertools.chain(tensors, chunks))
        self.chunks_offset = len(tensors) * TENSOR_BYTES
        self.partial_bytes = first * PARTIAL_BYTES

    def answer_bytes(self, histograms):
        """Bytes of an answer: float64 rows of wire.TENSOR_COLUMNS, then with `histograms` u32 rows of 64 counts."""
        return self.count * (ROW_BYTES + (HISTOGRAM_BYTES if histograms else 0))


def decode(answer, count):
    """(array("d") of 8 numbers a tensor, array("I") of 64 counts a tensor or None) from an answer's bytes."""
    from array import array

    rows = array("d")
    rows.frombytes(answer[: count * ROW_BYTES])
    counts = None
    if len(answer) > count * ROW_BYTES:
        counts = array("I")
        counts.frombytes(answer[count * ROW_BYTES :])
    return rows, counts


assert (_TENSOR.size, _CHUNK.size) == (TENSOR_BYTES, CHUNK_BYTES)
