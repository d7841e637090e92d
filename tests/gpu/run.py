"""Everything that needs a GPU, from a plain checkout: `make gpu`, or PYTHONPATH=.:hooks python tests/gpu/run.py.

The tests of tests/gpu and tests/hooks/traps (where pytest and what they import is installed), the benches of the kernels and of
the hooks' overhead, and one table at the end. Quick by default: less than 8 minutes; --full takes the numbers of the docs.
--dry-run needs no device: everything is run small on a pretended one, to meet wrong names and arguments (pretended.py).
Each part has a time limit, and what it had measured until then is in the table.
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
DRY_RUN = "GPUWATCH_GPU_DRY_RUN"
#: command, seconds that it may take when quick and when full
BENCHES = {
    "kernels": (["tests/bench/kernels.py", "--device", "cuda"], 100, 300),
    "overhead": (["tests/bench/bench_overhead.py", "--device", "cuda"], 220, 900),
}


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--full", action="store_true", help="as long as the numbers in the docs take")
    options.add_argument("--require", action="store_true", help="exit 1 where there is no device")
    options.add_argument("--dry-run", action="store_true", help="everything, small, on a pretended device")
    chosen = options.parse_args()
    if chosen.dry_run:
        os.environ[DRY_RUN] = "1"
    obstacle = missing_device(pretend=chosen.dry_run)
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
    return report(rows, chosen.dry_run)


def missing_device(*, pretend: bool = False) -> str | None:
    """Why there is nothing to run on, or None."""
    try:
        import torch

        import tests.bench.harness
    except ImportError as error:
        return f"{sys.executable} has no {error.name}"
    if not Path(tests.bench.harness.__file__).is_relative_to(ROOT):
        return f"{tests.bench.harness.__file__} hides the folder tests of this checkout"
    if pretend:
        return None
    return None if torch.cuda.is_available() else "there is no CUDA device here"


def tests(seconds: int) -> tuple[str, str, str, bool]:
    """One row for the tests; where pytest or what they import is missing, a short check of the kernel in their place."""
    missing = [name for name in NEEDED_BY_TESTS if importlib.util.find_spec(name) is None]
    if missing:
        print(f"left out: the tests of {' and '.join(TESTS)} ({', '.join(missing)} not installed)")
        return short_check()
    pretend = ["-p", "tests.gpu.pretended"] if os.environ.get(DRY_RUN) else []
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *pretend, *TESTS]
    status, seconds_taken, output = run(command, seconds)
    last = output.strip().splitlines()[-1] if output.strip() else "no output"
    return "tests", f"{last} ({seconds_taken:.0f} s)", "all pass", status == 0


def short_check() -> tuple[str, str, str, bool]:
    """The worst relative error of the fused kernel against float64 on the device, over ordinary, tiny and huge tensors."""
    import torch
    from gpuwatch_hooks.kernels import chunks, nvrtc
    from gpuwatch_hooks.readback import contents

    from tests.gpu.pretended import smaller

    try:
        kernel, worst = nvrtc.load(torch.cuda.current_device()), 0.0
    except Exception as error:  # the benches may still have something to show
        return "kernel against float64", f"{type(error).__name__}: {error}", "<= 1e-5", False
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for scale in (1.0, 1e-3) if dtype is torch.float16 else (1.0, 1e-30, 1e30):
            tensor = (torch.randn(smaller(1_000_003, 50_003), device="cuda") * scale).to(dtype)
            rows, counts = chunks.decode(contents(kernel.measure([tensor], histograms=True).cpu()), 1)
            wide = tensor.double()
            wanted = [wide.norm(), wide.abs().max(), wide.abs().mean()]
            worst = max([worst, *(abs(got / want.item() - 1.0) for got, want in zip(rows, wanted, strict=False))])
            worst = worst if sum(counts) == tensor.numel() else 1.0
    return "kernel against float64", f"relative error {worst:.1e}", "<= 1e-5", worst <= 1e-5


def bench(name: str, command: list[str], seconds: int, results: Path) -> list[tuple[str, str, str, bool]]:
    """Rows of one bench's numbers; one that failed or took too long is a row that says so, after what it had measured."""
    status, _, output = run([sys.executable, *command, "--json", str(results)], seconds)
    print(output)
    how = f"not done after {seconds} s" if status == 124 else f"exit {status}"
    found = [(f"bench {name}", how, "", False)] if status or not results.exists() else []
    for number in json.loads(results.read_text())["numbers"] if results.exists() else []:
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


def report(rows: list[tuple[str, str, str, bool]], dry: bool) -> int:
    """Print the table; 1 when a row was not kept. What a dry run measures has no meaning: there only failures count."""
    import torch

    from tests.bench.harness import machine, machine_line, markdown

    if dry:
        failed = [row for row in rows if not row[2] and not row[3]] + [row for row in rows if row[0] == "tests" and not row[3]]
        print("\n".join(f"failed: {what}: {value}" for what, value, *_ in failed) or f"dry run: {len(rows)} numbers, all made")
        return 1 if failed else 0
    print(f"## On a GPU\n\n{torch.cuda.get_device_name()}; {machine_line(machine(('torch', 'triton')))}\n")
    cells = [(what, value, limit, "yes" if kept else "NO") for what, value, limit, kept in rows]
    print(markdown(("what", "measured", "limit", "kept"), cells))
    return 0 if all(kept for *_, kept in rows) else 1


if __name__ == "__main__":
    raise SystemExit(main())
