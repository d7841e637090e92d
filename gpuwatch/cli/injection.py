"""How the hooks get into a command and its children: an environment, and what to say when they did not."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

#: Long enough for an interpreter on a cold disk; the job has ended by then, so nobody's training waits.
_ASK_SECONDS = 20.0
_OLDEST_PYTHON = (3, 9)
_ASK = """
import importlib.util, json, sys
print(json.dumps({"version": list(sys.version_info[:2]), "torch": importlib.util.find_spec("torch") is not None,
                  "hooked": any(type(finder).__name__ == "_WaitForTorch" for finder in sys.meta_path)}))
"""


def injected_environment(environ: Mapping[str, str], **settings: str) -> dict[str, str]:
    """`environ` with the hooks' folder first on PYTHONPATH; `settings` become GPUWATCH_* (socket=..., hooks_every=...)."""
    spec = importlib.util.find_spec("gpuwatch_hooks")
    assert spec is not None
    assert spec.submodule_search_locations
    folder = str(Path(next(iter(spec.submodule_search_locations))) / "inject")
    others = [entry for entry in environ.get("PYTHONPATH", "").split(os.pathsep) if entry and entry != folder]
    added = {f"GPUWATCH_{name.upper()}": value for name, value in settings.items()}
    return {**environ, **added, "GPUWATCH": "1", "PYTHONPATH": os.pathsep.join([folder, *others])}


def program_name(command: Sequence[str]) -> str:
    """What a run of this command is called when nobody named it: its script or module, else the program itself."""
    for index, argument in enumerate(command):
        if argument.endswith(".py"):
            return Path(argument).stem
        if argument == "-m" and index + 1 < len(command) and "python" in Path(command[0]).name:
            module = command[index + 1]
            if not module.startswith(("torch.distributed", "accelerate")):  # launchers: what they launch comes later
                return module.rpartition(".")[2]
    return Path(command[0]).stem


def why_unseen(command: Sequence[str], environ: Mapping[str, str]) -> str:
    """The likeliest reason why no optimizer step was seen, as a clause. Asks the command's own interpreter what it has."""
    interpreter = _interpreter(command)
    if interpreter is None:
        return "the hooks see optimizer steps of torch in the Python processes that the command starts"
    options = _interpreter_options(command)
    for flag in "IES":
        if flag in options:
            return f"with -{flag} Python ignores PYTHONPATH or sitecustomize, by which the hooks get in"
    facts = ask(interpreter, environ)
    if facts is None:
        return f"{interpreter} could not be asked what it has"
    version = tuple(facts["version"])
    if version < _OLDEST_PYTHON:
        return f"{interpreter} is Python {version[0]}.{version[1]}, and the hooks need 3.9 or newer"
    return _what_is_missing(interpreter, facts)


def _what_is_missing(interpreter: str, facts: dict[str, Any]) -> str:
    if not facts["torch"]:
        return f"torch is not installed for {interpreter}"
    if not facts["hooked"]:
        return f"{interpreter} did not load the hooks from PYTHONPATH"
    return "it ended before the first optimizer step of torch"


def ask(interpreter: str, environ: Mapping[str, str]) -> dict[str, Any] | None:
    """What the interpreter says of itself in that environment, {"version", "torch", "hooked"}; None when it cannot."""
    try:
        answer = subprocess.run(
            [interpreter, "-c", _ASK],
            env=dict(environ),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=_ASK_SECONDS,
            check=False,
        )
        facts: dict[str, Any] = json.loads(answer.stdout.splitlines()[-1])
    except (OSError, subprocess.TimeoutExpired, ValueError, IndexError):
        return None
    return facts


def _interpreter(command: Sequence[str]) -> str | None:
    name = Path(command[0]).name
    return shutil.which(command[0]) if name.startswith(("python", "pypy")) else None


def _interpreter_options(command: Sequence[str]) -> str:
    """The single-letter options before the script, run together: `python -uI x.py` gives "uI"."""
    letters = ""
    for argument in command[1:]:
        if not argument.startswith("-") or argument in {"-m", "-c", "-"}:
            break
        if not argument.startswith("--"):
            letters += argument[1:]
    return letters
