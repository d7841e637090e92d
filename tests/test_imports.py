"""The shape of the source: who may import whom, how long a file may be, and what a running daemon has loaded."""

import ast
import json
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

from tests.running_daemon import RunningDaemon

ROOT = Path(__file__).resolve().parent.parent
DAEMON = ROOT / "gpuwatch"
HOOKS = ROOT / "hooks" / "gpuwatch_hooks"
STDLIB = sys.stdlib_module_names
#: Which layers of gpuwatch a layer may import besides itself.
LAYERS = {
    "state": set(),
    "detectors": {"state"},
    "intake": {"state", "leaves"},
    "samplers": {"state", "leaves"},
    "exporters": {"state", "leaves"},
    "attach": {"leaves"},
    "history": {"state"},
    "advice": {"history", "state"},
    "report": {"advice", "exporters", "history", "state"},  # the exporters' PNG writer
    "demo": set(),
    "top": {"state", "samplers", "leaves"},
    "judging": {"state", "detectors", "leaves"},
    "service": {"leaves"},
    "leaves": set(),
    "cli": {
        "state",
        "detectors",
        "intake",
        "samplers",
        "exporters",
        "attach",
        "demo",
        "top",
        "history",
        "advice",
        "report",
        "service",
        "leaves",
        "wiring",
    },
    "wiring": {"state", "detectors", "intake", "samplers", "exporters", "judging", "service", "leaves", "wiring"},
}
#: Files directly in gpuwatch/ that any layer may know: settings, where the daemon is, its counters.
LEAVES = {"config", "allowed_values", "paths", "announcement", "selfstats"}
#: Only these put layers together.
WIRING = {"daemon", "served", "upkeep"}
FORBIDDEN_NAMES = {"utils", "util", "common", "helpers", "helper", "managers", "manager", "types", "misc", "base_utils"}
MAX_LINES = 500


def sources(folder):
    return sorted(path for path in folder.rglob("*.py") if "__pycache__" not in path.parts)


def imports(path, package):
    """(module, line, inside a function?) of each import; relative ones resolved against `package`."""
    tree = ast.parse(path.read_text())
    inside = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for node in ast.walk(function)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno, id(node) in inside
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                yield f"{module}.{alias.name}", node.lineno, id(node) in inside


def package_of(path, root, name):
    return ".".join([name, *path.relative_to(root).parts[:-1]])


def layer_of(module):
    parts = module.split(".")
    if len(parts) == 1 or (DAEMON / parts[1]).is_dir():
        return parts[1] if len(parts) > 1 else "leaves"
    if parts[1] in WIRING:
        return "wiring"
    return "leaves"


def broken_rules(path, lines_of=imports):
    """Sentences about what a file of gpuwatch/ imports and must not."""
    relative = path.relative_to(DAEMON)
    own = relative.parts[0] if len(relative.parts) > 1 else layer_of(f"gpuwatch.{relative.stem}")
    for module, line, _ in lines_of(path, package_of(path, DAEMON, "gpuwatch")):
        top = module.split(".")[0]
        where = f"{path.relative_to(ROOT)}:{line} imports {module}"
        if own == "demo":  # a training script: it is run, never imported (no layer but the command line knows its name)
            continue
        if top in {"torch", "numpy"}:
            yield f"{where}: the daemon has neither"
        elif top == "gpuwatch_hooks" and own not in {"cli", "attach"} and not module.startswith("gpuwatch_hooks.wire"):
            yield f"{where}: only the wire is shared"
        elif top == "gpuwatch" and relative.name not in {"__init__.py", "__main__.py"}:
            theirs = layer_of(module)
            if theirs != own and theirs not in LAYERS[own]:
                yield f"{where}: {own} does not know {theirs}"


@pytest.mark.parametrize("path", sources(DAEMON), ids=lambda path: str(path.relative_to(ROOT)))
def test_who_may_import_whom_in_the_daemon(path):
    # `from gpuwatch_hooks import wire` names the module as gpuwatch_hooks.wire
    assert list(broken_rules(path)) == []


def test_the_rule_sees_what_breaks_it(tmp_path):
    """Each kind of forbidden import, put into a file of the daemon that really exists."""

    def planted(module):
        return lambda path, package: [(module, 1, False)]

    rings = DAEMON / "intake" / "rings.py"
    for module in (
        "gpuwatch.exporters.http",
        "gpuwatch.cli.run",
        "torch",
        "numpy.linalg",
        "gpuwatch_hooks.ring",
        "gpuwatch.daemon",
    ):
        assert list(broken_rules(rings, planted(module))), module
    assert list(broken_rules(DAEMON / "detectors" / "rule.py", planted("gpuwatch.selfstats")))
    assert not list(broken_rules(rings, planted("gpuwatch_hooks.wire")))


@pytest.mark.parametrize("path", sources(DAEMON / "detectors"), ids=lambda path: path.stem)
def test_detectors_have_no_clock_no_files_and_no_threads(path):
    impure = {"time", "datetime", "os", "io", "pathlib", "socket", "threading", "subprocess", "random", "logging", "asyncio"}
    assert not [module for module, _, _ in imports(path, "gpuwatch.detectors") if module.split(".")[0] in impure]


@pytest.mark.parametrize("path", sources(HOOKS), ids=lambda path: str(path.relative_to(HOOKS)))
def test_hooks_import_the_standard_library_and_torch_alone(path):
    # The figure's library is there when a figure is logged; an adapter subclasses what its host has; and sitecustomize is
    # also read by a Python 2 that happens to be in the job.
    hosts = {"lightning", "pytorch_lightning", "transformers", "accelerate", "matplotlib", "triton", "torchao"}
    alone = {"adapters": hosts, "inject": {"thread"}}.get(path.relative_to(HOOKS).parts[0], set())
    for module, line, inside in imports(path, package_of(path, HOOKS, "gpuwatch_hooks")):
        top = module.split(".")[0]
        where = f"{path.relative_to(ROOT)}:{line} imports {module}"
        assert top in STDLIB or top == "gpuwatch_hooks" or top in alone or (inside and top in {"torch", *hosts}), where


def test_files_are_short_and_named_after_an_idea():
    lengths = {}
    for path in [*sources(DAEMON), *sources(HOOKS)]:
        assert path.stem not in FORBIDDEN_NAMES, path
        assert not FORBIDDEN_NAMES & set(path.relative_to(ROOT).parts[:-1]), path
        lines = len(path.read_text().splitlines())
        if lines:
            lengths[str(path.relative_to(ROOT))] = lines
    assert not {path: lines for path, lines in lengths.items() if lines > MAX_LINES}
    assert statistics.median(lengths.values()) <= 120
    assert statistics.quantiles(lengths.values(), n=10)[-1] <= 300


def test_each_file_beside_the_wiring_is_known():
    assert {path.stem for path in DAEMON.glob("*.py")} == LEAVES | WIRING | {"__init__", "__main__"}


def test_the_wiring_fits_on_two_screens():
    assert len((DAEMON / "daemon.py").read_text().splitlines()) <= 200


LOADED = """
import json, os, signal, sys, threading, time
from gpuwatch import config
from gpuwatch.service import logs
from gpuwatch.daemon import Daemon
settings = config.load(environ={}, flags=json.loads(sys.argv[1]))
logs.set_up("text", "info")
daemon = Daemon(settings)
code = daemon.run()
with open(settings.daemon.logdir + "/modules.json", "w") as file:
    json.dump(sorted(sys.modules), file)
raise SystemExit(code)
"""


def test_a_daemon_with_everything_switched_on_loads_neither_torch_nor_numpy(tmp_path):
    flags = {"sampling__gpus": True, "sampling__host": True, "prometheus__layer_top_k": 5}
    with RunningDaemon(tmp_path, code=LOADED, **flags) as daemon:
        client = subprocess_client(daemon)
        daemon.metrics()
        assert client.wait(60) == 0
        assert daemon.end() == 0
        modules = set(json.loads((daemon.logdir / "modules.json").read_text()))
        assert list(daemon.logdir.rglob("events.out.tfevents.*")), "TensorBoard was not exercised"
    assert not modules & {"torch", "numpy", "asyncio", "ssl", "pandas", "tensorflow"}
    assert {"gpuwatch.exporters.tensorboard", "gpuwatch.exporters.prometheus", "gpuwatch.intake.intake"} <= modules
    assert not {module for module in modules if module.startswith("gpuwatch_hooks.")} - {"gpuwatch_hooks.wire"}


def subprocess_client(daemon):
    """A process that sends every kind of record and message, and ends."""
    return subprocess.Popen([sys.executable, "-m", "tests.intake.talker", str(daemon.socket)], cwd=ROOT)
