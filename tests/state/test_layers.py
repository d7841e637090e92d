"""Unpacking rows, against struct; name tables, against a dict."""

from __future__ import annotations

import struct

from gpuwatch_hooks import wire
from hypothesis import given
from hypothesis import strategies as st

from gpuwatch.state import layers
from gpuwatch.state.names import NameTable
from gpuwatch.state.records import HistogramRows, Names, TensorRows


def rows(values: list[float], first: int = 0, columns: int = 0xFF, family: str = "gradient") -> TensorRows:
    return TensorRows(1, 0, family, 1, first, len(values) // 8, columns, struct.pack(f"<{len(values)}f", *values), 0)


def test_columns_are_what_struct_reads() -> None:
    values = [float(n) for n in range(24)]
    table = rows(values)
    for index, name in enumerate(wire.TENSOR_COLUMNS):
        assert list(layers.column(table, name) or ()) == values[index::8]


def test_a_column_that_was_not_measured_is_none() -> None:
    table = rows([1.0] * 8, columns=0b1)
    assert layers.column(table, "norm") is not None
    assert layers.column(table, "absmax") is None
    assert list(layers.statistics([table], "gradient")) == [(0, {"norm": 1.0})]


def test_statistics_of_one_family_over_all_tables() -> None:
    tables = [rows([1.0] * 16, first=5), rows([2.0] * 8, first=9), rows([3.0] * 8, family="weight")]
    assert [(index, row["std"]) for index, row in layers.statistics(tables, "gradient")] == [(5, 1.0), (6, 1.0), (9, 2.0)]


def test_buckets_are_what_struct_reads() -> None:
    counts = list(range(128))
    table = HistogramRows(1, 0, "gradient", 1, 3, 2, -48, struct.pack("<128I", *counts), 0)
    assert [(index, list(row)) for index, row in layers.buckets(table)] == [(3, counts[:64]), (4, counts[64:])]


def test_a_newer_table_replaces_and_an_older_one_is_ignored() -> None:
    table = NameTable()
    table.add(Names("tensor", 2, 0, ("a", "b"), (1, 2)))
    table.add(Names("tensor", 1, 0, ("old",), (9,)))
    assert (table.names, table.numels, table.version) == (["a", "b"], [1, 2], 2)
    table.add(Names("tensor", 3, 0, ("c",), (3,)))
    assert (table.names, table.numels) == (["c"], [3])
    assert table.name(0) == "c"
    assert table.name(1) == table.name(-1) == wire.OTHER_NAME


def test_a_table_as_one_record_is_the_same_table() -> None:
    table = NameTable()
    table.add(Names("tensor", 2, 1, ("b",), (2,)))
    copy = NameTable()
    copy.add(table.stretch("tensor"))
    assert (
        (copy.names, copy.numels, copy.version) == (table.names, table.numels, table.version) == (["tensor0", "b"], [0, 2], 2)
    )


stretches = st.lists(st.tuples(st.integers(0, 12), st.lists(st.text(max_size=300), max_size=6)), max_size=8)


@given(stretches)
def test_stretches_in_any_order_fill_the_table(parts: list[tuple[int, list[str]]]) -> None:
    table = NameTable(capacity=10)
    expected: dict[int, str] = {}
    left_out = 0
    for first, names in parts:
        table.add(Names("tensor", 1, first, tuple(names), ()))
        for index, name in enumerate(names, first):
            if index < 10:
                expected[index] = name[: wire.MAX_NAME_CHARS]
            else:
                left_out += 1
    assert len(table.names) == len(table.numels) <= 10
    assert {index: table.names[index] for index in expected} == expected
    assert table.left_out == left_out
