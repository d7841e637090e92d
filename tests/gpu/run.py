"""Everything that needs a GPU, from a plain checkout: `make gpu`, or PYTHONPATH=.:hooks python tests/gpu/run.py.

The tests of tests/gpu and tests/hooks/traps (where pytest and what they import is installed), the benches of the kernels and of
the hooks' overhead, and one table at the end. Quick by default: less than 8 minutes; --full takes the numbers of the docs.
Exit 0: all kept their limits, or there is no device, which is said in one sentence (with --require that is exit 1).
Exit 1: something failed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "hooks")]
TESTS = ("tests/gpu", "tests/hooks/traps/test_cuda.py")
NEEDED_BY_TESTS = ("pytest", "hypothesis", "msgspec")
#: command, seconds that it may take when quick and when full
BENCHES = {
    "kernels": (["tests/bench/kernels.py", "--device", "cuda"], 100, 300),
    "overhead": (["tests/bench/bench_overhead.py", "--device", "cuda"], 220, 900),
}


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--full", action="store_true", help="as long as the numbers in the docs take")
    options.add_argument("--require", action="store_true", help="exit 1 where there is no device")
    chosen = options.parse_args()
    obstacle = missing_device()
    if obstacle:
        print(f"Nothing was run: {obstacle}.")
        return 1 if chosen.require else 0
    rows = [tests(150 if not chosen.full else 600)]
    with tempfile.TemporaryDirectory() as folder:
        for name, (command, quick_seconds, full_seconds) in BENCHES.items():
            extra = [] if chosen.full else ["--quick"]
            rows += bench(
                name, [*command, *extra], full_seconds if chosen.full else quick_seconds, Path(folder, name + ".json")
            )
    return report(rows)


def missing_device() -> str | None:
    """Why there is nothing to run on, or None."""
    try:
        import torch
    except ImportError:
        return f"{sys.executable} has no torch"
    return None if torch.cuda.is_available() else "there is no CUDA device here"


def tests(seconds: int) -> tuple[str, str, str, bool]:
    """One row for the tests; where pytest or what they import is missing, a short check of the kernel in their place."""
    missing = [name for name in NEEDED_BY_TESTS if importlib.util.find_spec(name) is None]
    if missing:
        print(f"left out: the tests of {' and '.join(TESTS)} ({', '.join(missing)} not installed)")
        return short_check()
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *TESTS]
    status, seconds_taken, output = run(command, seconds)
    last = output.strip().splitlines()[-1] if output.strip() else "no output"
    return "tests", f"{last} ({seconds_taken:.0f} s)", "all pass", status == 0


def short_check() -> tuple[str, str, str, bool]:
    """The worst relative error of the fused kernel against float64 on the device, over ordinary, tiny and huge tensors."""
    import torch
    from gpuwatch_hooks.kernels import chunks, nvrtc
    from gpuwatch_hooks.readback import contents

    kernel, worst = nvrtc.load(torch.cuda.current_device()), 0.0
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for scale in (1.0, 1e-3) if dtype is torch.float16 else (1.0, 1e-30, 1e30):
            tensor = (torch.randn(1_000_003, device="cuda") * scale).to(dtype)
            rows, counts = chunks.decode(contents(kernel.measure([tensor], histograms=True).cpu()), 1)
            wide = tensor.double()
            wanted = [wide.norm(), wide.abs().max(), wide.abs().mean()]
            worst = max([worst, *(abs(got / want.item() - 1.0) for got, want in zip(rows, wanted, strict=False))])
            worst = worst if sum(counts) == tensor.numel() else 1.0
    return "kernel against float64", f"relative error {worst:.1e}", "<= 1e-5", worst <= 1e-5


def bench(name: str, command: list[str], seconds: int, results: Path) -> list[tuple[str, str, str, bool]]:
    """Rows of one bench's numbers; one that failed or took too long is a row that says so."""
    status, _, output = run([sys.executable, *command, "--json", str(results)], seconds)
    print(output)
    if status or not results.exists():
        return [(f"bench {name}", f"exit {status}", "", False)]
    found = []
    for number in json.loads(results.read_text())["numbers"]:
        limits = [f"{sign} {number[key]:g}" for key, sign in (("at_most", "<="), ("at_least", ">=")) if number[key] is not None]
        found.append((number["what"], f"{number['value']:.4g} {number['unit']}", " and ".join(limits), number["kept"]))
    return found


def run(command: list[str], seconds: int) -> tuple[int, float, str]:
    """(exit status, seconds, output) of a command in the checkout; 124 when it took too long."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "hooks")])}
    began = time.monotonic()
    try:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=environment,
            timeout=seconds,
            text=True,
            check=False,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
    except subprocess.TimeoutExpired as error:
        output = error.stdout or b""
        return 124, float(seconds), output.decode(errors="replace") if isinstance(output, bytes) else output
    return done.returncode, time.monotonic() - began, done.stdout


def report(rows: list[tuple[str, str, str, bool]]) -> int:
    """Print the table; 1 when a row was not kept."""
    import torch

    from tests.bench.harness import machine, machine_line, markdown

    print(f"## On a GPU\n\n{torch.cuda.get_device_name()}; {machine_line(machine(('torch', 'triton')))}\n")
    cells = [(what, value, limit, "yes" if kept else "NO") for what, value, limit, kept in rows]
    print(markdown(("what", "measured", "limit", "kept"), cells))
    return 0 if all(kept for *_, kept in rows) else 1


if __name__ == "__main__":
    raise SystemExit(main())
