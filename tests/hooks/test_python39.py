"""The hooks run in older Pythons than the daemon: every file must compile there, and the wire load without site packages."""

import re
import subprocess
from pathlib import Path

import gpuwatch_hooks
import pytest

HOOKS = Path(gpuwatch_hooks.__file__).parent
PYTHONS = sorted(Path("~/.pyenv/versions").expanduser().glob("3.*/bin/python"))
OLDEST = [python for python in PYTHONS if re.search(r"/3\.9\.\d+/", str(python))]

LOADS = """
import importlib.util, sys
folder = {folder!r}
spec = importlib.util.spec_from_file_location("gpuwatch_hooks", folder + "/__init__.py", submodule_search_locations=[folder])
sys.modules["gpuwatch_hooks"] = package = importlib.util.module_from_spec(spec)
spec.loader.exec_module(package)
from gpuwatch_hooks import wire, ring, session, guard, patching, control, bootstrap
writer = ring.RingWriter(8, 1024)
assert writer.write(wire.KIND_EVENT, b"x")
assert "torch" not in sys.modules
s = session.current(); s.arm(); s.scalar("a", 1, 1.0); s.end("exit")
print("fine")
"""


@pytest.mark.skipif(not OLDEST, reason="needs a Python 3.9 under ~/.pyenv/versions")
def test_every_file_compiles_on_python_39(tmp_path):
    program = (
        "import sys\nfor path in sys.argv[1:]:\n    compile(open(path, encoding='utf-8').read(), path, 'exec')\nprint('fine')"
    )
    files = [str(path) for path in sorted(HOOKS.rglob("*.py"))]
    done = subprocess.run(
        [OLDEST[0], "-I", "-S", "-c", program, *files], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.stdout, done.stderr) == ("fine\n", "")


@pytest.mark.skipif(not OLDEST, reason="needs a Python 3.9 under ~/.pyenv/versions")
@pytest.mark.parametrize("python", [p for p in PYTHONS if int(p.parts[-3].split(".")[1]) >= 9], ids=lambda path: path.parts[-3])
def test_the_core_works_isolated_and_without_torch(python, tmp_path):
    done = subprocess.run(
        [python, "-I", "-S", "-W", "error", "-c", LOADS.format(folder=str(HOOKS))],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={"GPUWATCH_SOCKET": str(tmp_path / "none")},
    )
    assert (done.stdout, done.stderr) == ("fine\n", "")
