"""docs/traps.md names a test for each trap, statistic and promise: those tests exist, and each table is complete."""

import ast
import functools
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]
PAGE = (TESTS.parent / "docs" / "traps.md").read_text(encoding="utf-8")
ROWS = [line.strip("| ").split(" | ") for line in PAGE.splitlines() if line.startswith("| ")]


@functools.cache
def functions_of(path):
    """Names of the test functions of a file below tests/."""
    tree = ast.parse((TESTS / path).read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}


def named(cell):
    """(file, test or "") of each reference in a cell; one that begins with :: is of the file before."""
    file = ""
    for reference in re.findall(r"`([\w/]*\.py(?:::\w+)?|::\w+)`", cell):
        before, _, test = reference.partition("::")
        file = before or file
        yield file, test


def missing(cell):
    """What a cell names and is not there; the whole cell when it names nothing."""
    found = [pair for pair in named(cell) if pair[0].startswith("bench/") or "test_" in pair[0]]
    if not found:
        return [cell]
    gone = [file for file, _ in found if not (TESTS / file).exists()]
    return gone + [f"{file}::{test}" for file, test in found if test and file not in gone and test not in functions_of(file)]


@pytest.mark.parametrize("row", [row for row in ROWS if "`" in row[-1]], ids=lambda row: row[0][:24])
def test_each_test_that_is_named_exists(row):
    assert missing(" ".join(row)) == []


def test_no_trap_and_no_promise_is_left_out():
    first = [row[0] for row in ROWS if "`" in row[-1]]
    wanted = [str(n) for n in range(1, 44)] + [f"H{n}" for n in range(1, 11)] + [f"D{n}" for n in range(1, 18)]
    assert [cell for cell in first if re.fullmatch(r"[HD]?\d+", cell)] == wanted


def test_what_is_gone_is_noticed():
    assert missing("`hooks/test_ring.py::test_that_never_was`") == ["hooks/test_ring.py::test_that_never_was"]
    assert missing("`hooks/test_nothing.py::test_a`, `::test_b`") == ["hooks/test_nothing.py"] * 2
    assert missing("we are sure of it") == ["we are sure of it"]
