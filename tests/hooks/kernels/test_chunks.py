"""How tensors are cut into chunks, packed into tables and unpacked again: pure functions."""

import struct

import pytest
from gpuwatch_hooks.kernels import chunks
from hypothesis import given
from hypothesis import strategies as st


@pytest.mark.parametrize(
    ("total", "processors", "entries"),
    [
        (0, 132, 1 << 15),
        (124_000_000, 132, 1 << 15),
        (1_500_000_000, 132, 1 << 18),
        (7_000_000_000, 132, 1 << 18),
        (300_000_000, 132, 1 << 17),
        (25_000_000, 16, 1 << 16),
        (1000, 0, 1 << 15),
    ],
)
def test_chunks_are_large_enough_for_a_block_and_many_enough_for_the_device(total, processors, entries):
    assert chunks.chunk_entries(total, processors) == entries


@given(st.lists(st.integers(0, 5000), min_size=1, max_size=20), st.sampled_from([64, 512, 4096]))
def test_every_entry_is_in_one_chunk(numels, entries):
    layout = chunks.Layout(numels, [index % 3 for index in range(len(numels))], entries)
    table = memoryview(layout.table)
    seen = [0] * len(numels)
    for at in range(layout.chunks):
        start, count, tensor = struct.unpack_from("<QII", table, layout.chunks_offset + 16 * at)
        numel, first, number, kind, _ = struct.unpack_from("<QIIII", table, 24 * tensor)
        assert numel == numels[tensor]
        assert kind == tensor % 3
        assert first <= at < first + number
        assert start == seen[tensor]
        assert 0 < count <= entries
        seen[tensor] += count
    assert seen == numels
    assert layout.partial_bytes == 48 * layout.chunks
    assert len(table) == layout.chunks_offset + 16 * layout.chunks


def test_an_answer_is_taken_apart():
    layout = chunks.Layout([3, 0], [0, 1], 64)
    rows, counts = [float(i) for i in range(16)], list(range(128))
    answer = struct.pack("<16d", *rows)
    assert len(answer) == layout.answer_bytes(False)
    assert chunks.decode(answer, 2)[0].tolist() == rows
    assert chunks.decode(answer, 2)[1] is None
    answer += struct.pack("<128I", *counts)
    assert len(answer) == layout.answer_bytes(True)
    assert chunks.decode(answer, 2)[1].tolist() == counts


def test_kinds():
    import torch

    assert [chunks.kind_of(t) for t in (torch.float32, torch.bfloat16, torch.float16)] == [0, 1, 2]
    assert [chunks.kind_of(t) for t in (torch.float64, torch.int32, torch.bool, torch.float8_e4m3fn)] == [None] * 4
