"""Starting with Python itself: what a job under `gpuwatch run` notices of it, which is nothing."""

import json
import os
import subprocess
import sys
from pathlib import Path

import gpuwatch_hooks
import pytest

INJECT = Path(gpuwatch_hooks.__file__).parent / "inject"
PYTHONS = sorted(Path("~/.pyenv/versions").expanduser().glob("*/bin/python")) or [Path(sys.executable)]
#: This Python without the packages of its virtual environment: `import torch` finds what a test puts there, or nothing.
BARE_PYTHON = Path(sys._base_executable)

#: What can be seen of a start: path, finders, modules, as JSON.
LOOK = """
import json, sys
print(json.dumps([
    sys.path,
    [getattr(f, "__name__", type(f).__name__) for f in sys.meta_path],
    sorted(m for m in sys.modules if m.startswith(("gpuwatch", "torch", "sitecustomize", "usercustomize"))),
    [list(map(str, getattr(sys.modules.get(m), "SEEN", []))) for m in ("sitecustomize", "usercustomize")],
    [getattr(sys.modules.get(m), "__file__", None) for m in ("sitecustomize", "usercustomize")],
]))
"""
THEIRS = """
import sys
SEEN = [__name__, __file__, __spec__.name if sys.version_info >= (3,) else "", sorted(sys.argv if hasattr(sys, "argv") else [])]
"""


def start(*arguments, path=(), gpuwatch="1", python=sys.executable, stdin=None, cwd=None, **environment):
    """Run Python with our folder first on PYTHONPATH (and `path` behind it), as the command line does."""
    found = [str(INJECT)] if gpuwatch is not None else []
    env = {
        "PATH": os.environ["PATH"],
        "HOME": os.environ.get("HOME", "/"),
        "PYTHONPATH": os.pathsep.join([*found, *map(str, path)]),
        "PYTHONDONTWRITEBYTECODE": "1",
        **({"GPUWATCH": gpuwatch} if gpuwatch is not None else {}),
        **environment,
    }
    if not env["PYTHONPATH"]:
        del env["PYTHONPATH"]
    command = [str(python), *map(str, arguments)]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False, input=stdin, cwd=cwd)


@pytest.fixture
def own_site(tmp_path):
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(THEIRS)
    (folder / "usercustomize.py").write_text(THEIRS)
    return folder


def _looks(done):
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return json.loads(done.stdout)


@pytest.mark.parametrize("python", PYTHONS, ids=lambda path: path.parts[-3])
@pytest.mark.parametrize("gpuwatch", ["1", "0", ""])
def test_the_users_own_sitecustomize_runs_as_without_us(own_site, python, gpuwatch):
    with_us = _looks(start("-c", LOOK, path=[own_site], gpuwatch=gpuwatch, python=python))
    without = _looks(start("-c", LOOK, path=[own_site], gpuwatch=None, python=python))
    assert with_us[0] == without[0], "sys.path"
    assert with_us[2:] == without[2:], "modules, and what the user's own ones saw"
    new = [name for name in with_us[1] if name not in without[1]]
    is_new_enough = "2.7" not in str(python) and not any(f"/3.{minor}." in str(python) for minor in range(9))
    assert new == (["_WaitForTorch"] if gpuwatch == "1" and is_new_enough else [])


def test_without_one_of_their_own(tmp_path):
    with_us, without = (_looks(start("-c", LOOK, path=[tmp_path], gpuwatch=way)) for way in ("1", None))
    assert with_us[0] == without[0]
    assert set(with_us[2]) - set(without[2]) <= {"sitecustomize"}


@pytest.mark.parametrize(
    "body",
    [
        "raise ValueError('mine')",
        "import no_such_module_anywhere",
        "raise ImportError(name='sitecustomize')",
        "syntax error here",
    ],
)
def test_an_error_in_theirs_is_reported_as_without_us(tmp_path, body):
    (tmp_path / "sitecustomize.py").write_text(body)
    program = "import sys; print('sitecustomize' in sys.modules)"
    with_us, without = (start("-c", program, path=[tmp_path], gpuwatch=way) for way in ("1", None))
    assert (with_us.returncode, with_us.stdout, with_us.stderr) == (without.returncode, without.stdout, without.stderr)


def test_theirs_may_exit(tmp_path):
    (tmp_path / "sitecustomize.py").write_text("raise SystemExit(9)")
    assert start("-c", "pass", path=[tmp_path]).returncode == start("-c", "pass", path=[tmp_path], gpuwatch=None).returncode


def test_another_tool_that_chains_to_us_is_not_run_twice(tmp_path):
    """Its folder comes before ours; it imports the next sitecustomize, which is us, and we go on behind ourselves."""
    tool, user = tmp_path / "tool", tmp_path / "user"
    tool.mkdir()
    user.mkdir()
    (tool / "sitecustomize.py").write_text(
        "import importlib.machinery, importlib.util, os, sys\n"
        "sys.stderr.write('tool\\n')\n"
        "here = os.path.dirname(__file__)\n"
        "spec = importlib.machinery.PathFinder.find_spec('sitecustomize', [p for p in sys.path if p != here])\n"
        "spec.loader.exec_module(importlib.util.module_from_spec(spec))\n"
    )
    (user / "sitecustomize.py").write_text("import sys; sys.stderr.write('user\\n')")
    path = os.pathsep.join(map(str, [tool, INJECT, user]))
    done = start(
        "-c", "import sys; print([p for p in sys.path if 'inject' in p])", gpuwatch=None, GPUWATCH="1", PYTHONPATH=path
    )
    assert done.stderr.splitlines() == ["tool", "user"]
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("flags", [["-I"], ["-E"], ["-S"]])
def test_isolated_pythons_do_not_see_us(flags):
    done = start(*flags, "-c", "import sys; print([type(f).__name__ for f in sys.meta_path])")
    assert "_WaitForTorch" not in done.stdout
    assert done.returncode == 0


def test_children_inherit_the_way_in():
    program = (
        "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import sys; print(type(sys.meta_path[0]).__name__)'])"
    )
    assert start("-c", program).stdout == "_WaitForTorch\n"


FAKE_TORCH = "import sys\nLOADER = type(__spec__.loader).__name__\n{body}\n"

#: In place of the real hooks, so that only the waiting is tested, fast: says what it was called with.
FAKE_HOOKS = "import sys\ndef start():\n    sys.stderr.write('started %s\\n' % hasattr(sys.modules.get('torch'), 'READY'))\n"


@pytest.fixture
def fake(tmp_path):
    """A folder with a torch of our own, and a copy of the injected folder beside hooks that only say that they were started."""
    (tmp_path / "gpuwatch_hooks" / "inject").mkdir(parents=True)
    (tmp_path / "gpuwatch_hooks" / "__init__.py").write_text("")
    (tmp_path / "gpuwatch_hooks" / "bootstrap.py").write_text(FAKE_HOOKS)
    (tmp_path / "gpuwatch_hooks" / "inject" / "sitecustomize.py").write_text((INJECT / "sitecustomize.py").read_text())
    (tmp_path / "path" / "torch").mkdir(parents=True)
    torch = tmp_path / "path" / "torch" / "__init__.py"
    torch.write_text(FAKE_TORCH.format(body="READY = True"))

    def run(program, **environment):
        path = os.pathsep.join([str(tmp_path / "gpuwatch_hooks" / "inject"), str(tmp_path / "path")])
        return start("-c", program, python=BARE_PYTHON, gpuwatch=None, GPUWATCH="1", PYTHONPATH=path, **environment)

    run.torch = torch
    run.folder = tmp_path
    return run


AFTER = "print(type(sys.meta_path[0]).__name__, torch.LOADER, type(torch.__loader__).__name__, vars(torch.__spec__.loader))"


def test_started_once_when_torch_is_complete_and_no_trace_is_left(fake):
    done = fake(f"import sys, os; import torch; import torch; {AFTER}; print('gpuwatch_hooks' in sys.modules)")
    assert done.stderr == "started True\n"
    head, loader, loader_after, rest = done.stdout.splitlines()[0].split(" ", 3)
    assert head != "_WaitForTorch"
    assert loader == loader_after == "SourceFileLoader"
    assert "exec_module" not in rest
    assert done.stdout.splitlines()[1] == "True"


def test_nothing_is_loaded_in_a_program_without_torch(fake):
    done = fake("import sys, json, decimal; print([m for m in sys.modules if m.startswith('gpuwatch')])")
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_a_torch_that_fails_at_first_is_waited_for(fake):
    fake.torch.write_text(
        "import os\nif os.environ.pop('FAIL', None): raise ImportError('libtorch.so: no such file')\nREADY = True\n"
    )
    program = "try:\n    import torch\nexcept ImportError as error:\n    print(error)\nimport torch\n"
    done = fake(program, FAIL="1")
    assert (done.stdout, done.stderr) == ("libtorch.so: no such file\n", "started True\n")


def test_no_torch_is_the_same_error(fake):
    fake.torch.unlink()
    fake.torch.parent.rmdir()
    done = fake("try:\n    import torch\nexcept ModuleNotFoundError as error:\n    print(error.name, error)")
    assert (done.stdout, done.stderr) == ("torch No module named 'torch'\n", "")


ODD_IMPORTERS = {
    "a loader without attributes": """
import importlib.machinery, sys
class Loader:
    __slots__ = ()
    def create_module(self, spec): return None
    def exec_module(self, module): module.READY = True
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "torch": return importlib.machinery.ModuleSpec(name, Loader())
sys.meta_path.insert(0, Finder())
""",
    "a finder in front that asks the others": """
import sys, importlib.util
class Finder:
    busy = False
    def find_spec(self, name, path=None, target=None):
        if name != "torch" or self.busy: return None
        self.busy = True
        try: return importlib.util.find_spec(name)
        finally: self.busy = False
sys.meta_path.insert(0, Finder())
""",
    "a finder of the old kind": """
import sys
class Finder:
    def find_module(self, name, path=None): return None
sys.meta_path.insert(0, Finder())
""",
    "a finder that cannot be compared": """
import sys
class Finder:
    def __eq__(self, other): raise RuntimeError
    def find_spec(self, name, path=None, target=None): return None
sys.meta_path.insert(0, Finder())
""",
    "a loader that is a class": """
import importlib.machinery, sys
class Loader:
    @staticmethod
    def create_module(spec): return None
    @staticmethod
    def exec_module(module): module.READY = True
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "torch": return importlib.machinery.ModuleSpec(name, Loader)
sys.meta_path.insert(0, Finder())
""",
}


@pytest.mark.parametrize("kind", ODD_IMPORTERS)
def test_odd_importers_bring_torch_as_they_would_have(fake, kind):
    done = fake(ODD_IMPORTERS[kind] + "\nimport torch; print(torch.READY, 'exec_module' in vars(type(torch.__spec__.loader)))")
    assert done.returncode == 0
    assert done.stdout.startswith("True")
    assert "Traceback" not in done.stderr


def test_a_torch_imported_before_us_is_found(fake):
    """By a .pth file, say: then there is nothing to wait for."""
    early = fake.folder / "early"
    early.mkdir()
    lines = [
        "import sys, torch",
        f"sys.path.remove({str(early)!r})",
        "del sys.modules['sitecustomize']",
        "import sitecustomize",
    ]
    (early / "sitecustomize.py").write_text("\n".join(lines))
    path = os.pathsep.join(str(fake.folder / part) for part in ("early", "gpuwatch_hooks/inject", "path"))
    assert fake("pass").stderr == ""
    assert start("-c", "pass", gpuwatch=None, GPUWATCH="1", PYTHONPATH=path).stderr == "started True\n"


@pytest.mark.parametrize("body", ["raise RuntimeError('broken hooks')", "syntax error", "import no_such_module"])
def test_broken_hooks_cost_one_line(fake, body):
    (fake.folder / "gpuwatch_hooks" / "bootstrap.py").write_text(body)
    done = fake("import torch; print(torch.READY)")
    assert (done.returncode, done.stdout) == (0, "True\n")
    assert len(done.stderr.splitlines()) == 1
    assert "training goes on" in done.stderr


def test_hooks_that_are_gone_cost_one_line(fake):
    (fake.folder / "gpuwatch_hooks" / "bootstrap.py").unlink()
    (fake.folder / "gpuwatch_hooks" / "__init__.py").unlink()
    done = fake("import torch; print(torch.READY)")
    assert (done.returncode, done.stdout) == (0, "True\n")
    assert len(done.stderr.splitlines()) == 1


def test_threads_that_import_torch_at_once(fake):
    fake.torch.write_text("import time; time.sleep(0.2); READY = True")
    program = (
        "import threading\n"
        "def work():\n"
        "    import torch\n"
        "    assert torch.READY\n"
        "threads = [threading.Thread(target=work) for _ in range(8)]\n"
        "[t.start() for t in threads]; [t.join() for t in threads]\n"
    )
    done = fake(program)
    assert (done.returncode, done.stderr) == (0, "started True\n")


def test_stdin_arguments_and_exit_code_pass_through(tmp_path):
    script = tmp_path / "reads.py"
    script.write_text("import sys; print(sys.stdin.read(), sys.argv[1:], __name__, __file__ == sys.argv[0]); sys.exit(17)")
    results = [start(script, "--x", "1", stdin="given", gpuwatch=way) for way in ("1", None)]
    assert results[0].returncode == results[1].returncode == 17
    assert results[0].stdout == results[1].stdout == "given ['--x', '1'] __main__ True\n"


def test_real_torch_gets_the_real_hooks(make_daemon):
    """And the package is known under its own name although no path leads to it."""
    make_daemon()
    program = (
        "import sys, torch, gpuwatch_hooks\n"
        "from gpuwatch_hooks import session\n"
        "print(session.current().installed, session.current().armed, len(session.current().ledger) > 2)\n"
        "print([p for p in sys.path if 'gpuwatch' in p], 'torch._dynamo' in sys.modules)\n"
    )
    done = start("-c", program, gpuwatch="1", GPUWATCH_SOCKET=os.environ["GPUWATCH_SOCKET"])
    assert done.stderr == ""
    assert done.stdout.splitlines()[0] == "True False True"
    assert done.stdout.splitlines()[1].endswith("False")
