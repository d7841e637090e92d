"""What every bench shares: its options, the line that says where it ran, the table, and the limits that --check holds it to.

A bench is a script `tests/bench/bench_NAME.py`, started as `python tests/bench/bench_NAME.py [--quick] [--json F] [--check]`:

    from harness import Bench

    bench = Bench("recording", "What one step costs the training thread")
    steps = 200 if bench.quick else 5000
    bench.number("record 150 tensors, p50", 41.2, "us", at_most=50)
    bench.table("beside others", ("observer", "PSS MB"), [("gpuwatch", 61.0), ("nvitop-exporter", 58.3)])
    raise SystemExit(bench.finish())
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import math
import os
import platform
import statistics
import subprocess
import traceback
from pathlib import Path

_REPOSITORY = Path(__file__).resolve().parents[2]


class Bench:
    """One bench: parses `argv` (default: the command line), collects numbers and tables, prints and judges them.

    `options` are extra argparse options: {"--steps": {"type": int, "default": 0}}; read them from `bench.options`.
    """

    def __init__(self, name, title, *, packages=("torch",), options=None, argv=None):
        parser = argparse.ArgumentParser(description=title, allow_abbrev=False)
        parser.add_argument("--quick", action="store_true", help="few repetitions: shows that it works, not how fast it is")
        parser.add_argument("--json", metavar="F", type=Path, help="also write everything to this file")
        parser.add_argument("--check", action="store_true", help="exit 1 when a number misses its limit")
        for flag, settings in (options or {}).items():
            parser.add_argument(flag, **settings)
        self.options = parser.parse_args(argv)
        self.quick = self.options.quick
        self.name, self.title = name, title
        self.machine = machine(packages)
        self.numbers, self.tables = [], []

    def number(self, what, value, unit, *, at_most=None, at_least=None, note=""):
        """One measured `value` in `unit`, with the limit that it must keep, if it has one. Returns whether it does."""
        kept = (at_most is None or value <= at_most) and (at_least is None or value >= at_least)
        limit = {"at_most": at_most, "at_least": at_least}
        self.numbers.append({"what": what, "value": value, "unit": unit, "kept": kept, "note": note, **limit})
        self._write()
        return kept

    def failed(self, what, error):
        """Something could not be measured: that is a number that missed its limit, and the others go on."""
        traceback.print_exception(error)
        reason = f"{type(error).__name__}: {error}"[:200]
        none = {"value": math.nan, "unit": reason, "kept": False, "note": "", "at_most": None, "at_least": None}
        self.numbers.append({"what": what, **none})
        self._write()

    def table(self, title, columns, rows):
        """A table beside the numbers, for instance two programs side by side: `rows` of as many cells as `columns`."""
        self.tables.append({"title": title, "columns": list(columns), "rows": [list(row) for row in rows]})

    def finish(self):
        """Print everything as Markdown, write --json, and return the exit status: 1 only with --check and a missed limit."""
        print(f"## {self.title}\n\n{machine_line(self.machine)}{' (--quick)' if self.quick else ''}\n")
        for table in self.tables:
            print(f"{table['title']}\n\n{markdown(table['columns'], table['rows'])}\n")
        if self.numbers:
            rows = [(n["what"], n["value"], n["unit"], _limit(n), n["note"]) for n in self.numbers]
            print(markdown(("measured", "value", "unit", "limit", "note"), rows) + "\n")
        self._write()
        missed = [n["what"] for n in self.numbers if not n["kept"]]
        if missed:
            print(f"missed: {', '.join(missed)}")
        return 1 if missed and self.options.check else 0

    def _write(self):
        """After each number: one that is stopped has left what it had until then."""
        if self.options.json:
            document = {"bench": self.name, "title": self.title, "quick": self.quick, "machine": self.machine}
            document |= {"numbers": self.numbers, "tables": self.tables}
            self.options.json.write_text(json.dumps(document, indent=2) + "\n")


def machine(packages=()):
    """Where this runs: processor, cores, memory, kernel, load, Python, the packages' versions and the commit."""
    facts = {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "kernel": platform.release(),
        "load_1m": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "commit": _commit(),
        "packages": {},
    }
    for package in packages:
        try:
            facts["packages"][package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            facts["packages"][package] = "absent"
    return facts


def machine_line(facts):
    """The facts of `machine()` in one line, as every table in docs carries it."""
    packages = "".join(f", {name} {version}" for name, version in facts["packages"].items())
    return (
        f"{facts['cpu']}, {facts['cores']} cores, {facts['memory_bytes'] / 2**30:.0f} GiB, Linux {facts['kernel']}, "
        f"load {facts['load_1m']}; Python {facts['python']}{packages}; commit {facts['commit']}"
    )


def markdown(columns, rows):
    """A Markdown table; floats with three significant digits, numbers flush right."""
    cells = [[_cell(cell) for cell in row] for row in rows]
    widths = [max([3, len(str(name)), *(len(row[i]) for row in cells)]) for i, name in enumerate(columns)]
    right = [bool(rows) and all(isinstance(row[i], int | float) for row in rows) for i in range(len(columns))]
    lines = [
        [str(name) for name in columns],
        ["-" * (width - 1) + ":" if flush else "-" * width for width, flush in zip(widths, right, strict=True)],
    ]
    return "\n".join(
        "| " + " | ".join(c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right, strict=True)) + " |"
        for row in [*lines, *cells]
    )


def percentile(values, percent):
    """The `percent`-th percentile of `values` by the nearest rank, so that p99 is a value that was measured."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, -(-len(ordered) * percent // 100) - 1))]


def alternate(measure_a, measure_b, rounds):
    """Median of b/a over `rounds` of A B, B A, ..., so that drift of the machine falls on both; also all ratios.

    Each callable returns seconds. The order within a round alternates, because the second of two is often the warmer one.
    """
    ratios = []
    for turn in range(rounds):
        if turn % 2:
            b, a = measure_b(), measure_a()
        else:
            a, b = measure_a(), measure_b()
        ratios.append(b / a)
    return statistics.median(ratios), ratios


def _cell(value):
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return str(value)


def _limit(number):
    if number["at_most"] is None and number["at_least"] is None:
        return ""
    limits = [f"<= {number['at_most']:g}"] if number["at_most"] is not None else []
    limits += [f">= {number['at_least']:g}"] if number["at_least"] is not None else []
    return " and ".join(limits) + ("" if number["kept"] else " MISSED")


def _cpu_model():
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def _commit():
    result = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=_REPOSITORY, capture_output=True, text=True, timeout=10, check=False
    )
    return result.stdout.strip() or "unknown"
