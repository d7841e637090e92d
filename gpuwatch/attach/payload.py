"""What an attach injects: a short text that the main thread runs, and the hooks themselves, packed, for a thread of ours.

A module's code travels compiled where the target's own kind of interpreter can be asked to compile it (marshalled code loads
in 2 ms; compiling all modules takes 100 ms), else as source.
"""

from __future__ import annotations

import ast
import binascii
import functools
import hashlib
import marshal
import os
import re
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from gpuwatch.attach.loader import FILLED_AT, LEFT_AT, SOURCE
from gpuwatch.attach.process import Process

#: Parts of the hooks that only an import of theirs would load: an attached job does not import us.
_LEFT_OUT = ("inject", "adapters")
#: The loader's own place among the modules.
_LOADER = "gpuwatch_attach"
#: What an attach calls, and what the first step loads besides.
_FIRST = ("gpuwatch_hooks.attached", "gpuwatch_hooks.recorder", "gpuwatch_hooks.kernels.cpu")
_STANDARD = re.compile(r"^\s*(?:import|from) ([a-z_]+)", re.MULTILINE)
_COMPILE_SECONDS = 20
_COMPILER = """
import marshal, sys
sources = marshal.loads(sys.stdin.buffer.read())
codes = {name: (package, marshal.dumps(compile(text, "<%s>" % name, "exec", dont_inherit=True, optimize=0)))
         for name, (package, text) in sources.items()}
sys.stdout.buffer.write(marshal.dumps(codes, 2))
"""

#: name -> (whether it is a package, marshalled code or source text)
Modules = dict[str, tuple[bool, bytes | str]]


class Place(NamedTuple):
    """Where in the target things lie: the report; the packed modules, (address, bytes) or a file's path; the whole mapping."""

    report: int | str
    blob: tuple[int, int] | str | None
    area: tuple[int, int] | None


@functools.cache
def sources() -> dict[str, tuple[bool, str]]:
    """Every module of the hooks as source, by full name, each after those that it imports when it is loaded; and the loader."""
    spec = find_spec("gpuwatch_hooks")
    if spec is None or spec.origin is None:
        raise FileNotFoundError("the hooks are not installed beside gpuwatch")
    root = Path(spec.origin).parent
    found = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        if parts[0] in _LEFT_OUT:
            continue
        package = parts[-1] == "__init__"
        name = ".".join(("gpuwatch_hooks", *(parts[:-1] if package else parts)))
        found[name] = (package, path.read_text(encoding="utf-8"))
    return {name: found[name] for name in ordered(found)} | {_LOADER: (False, SOURCE)}


def ordered(texts: dict[str, tuple[bool, str]]) -> list[str]:
    """The names in an order in which each module can be executed: after all that it imports at its top level.

    Raises ValueError when they import each other in a circle.
    """
    needs = {name: set(_imported(name, texts)) for name in texts}
    order: list[str] = []

    def visit(name: str, above: tuple[str, ...]) -> None:
        if name in above:
            raise ValueError(f"modules import each other: {' -> '.join([*above, name])}")
        if name not in order:
            for needed in sorted(needs[name]):
                visit(needed, (*above, name))
            order.append(name)

    for name in sorted(texts):
        visit(name, ())
    return order


@functools.cache
def needed_at_once() -> frozenset[str]:
    """The modules that an attach and a first step use: all that _FIRST import when they are executed, and the packages."""
    texts = {name: text for name, text in sources().items() if name != _LOADER}
    found: set[str] = set()
    waiting = [*_FIRST, *(name for name, (package, _) in texts.items() if package)]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += _imported(name, texts)
    return frozenset(found)


def _imported(name: str, texts: dict[str, tuple[bool, str]]) -> Iterator[str]:
    """Modules among `texts` that `name` imports while it is executed."""
    package, text = texts[name]
    root = name.partition(".")[0]
    yield from [root] if name != root else []
    here = name.split(".") if package else name.split(".")[:-1]
    waiting: list[ast.AST] = [ast.parse(text)]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.ImportFrom) and node.level:
            base = [*here[: len(here) - node.level + 1], *(node.module.split(".") if node.module else [])]
            candidates = [".".join(base), *(".".join([*base, alias.name]) for alias in node.names)]
            yield from (found for found in candidates if found in texts and found not in (name, root))
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            waiting.extend(ast.iter_child_nodes(node))


def compiled(process: Process) -> Modules:
    """The hooks in the bytecode of the target's interpreter, or as source where it cannot be started from here."""
    texts = sources()
    if process.python == sys.version_info[:2] and not process.free_threaded:
        return _compiled_here()
    cache = _cache_file(process, texts)
    try:
        return _checked(marshal.loads(cache.read_bytes()), texts)  # noqa: S302  # written by us, in our own folder
    except (OSError, ValueError, EOFError, TypeError):
        pass
    try:
        ran = subprocess.run(
            [process.executable, "-I", "-S", "-c", _COMPILER],
            input=marshal.dumps(texts, 2),
            capture_output=True,
            timeout=_COMPILE_SECONDS,
            check=True,
        )
        codes = _checked(marshal.loads(ran.stdout), texts)  # noqa: S302  # from an interpreter that we started
    except (OSError, subprocess.SubprocessError, ValueError, EOFError, TypeError):
        return dict(texts)
    _keep(cache, ran.stdout)
    return codes


def pack(modules: Modules) -> bytes:
    """All modules as the bytes that the loader unpacks: in this order, and whether each is needed at once."""
    eager = needed_at_once()
    listed = [(name, package, name in eager, code) for name, (package, code) in modules.items() if name != _LOADER]
    return zlib.compress(marshal.dumps(listed, 2), 1)


def build(modules: Modules, verb: str, options: dict[str, Any], process: Process, place: Place, valid_seconds: float) -> str:
    """The text. `verb`: begin or end; it does nothing after `valid_seconds`, and in no other process than this.

    PyRun_SimpleString runs it in `__main__`: hence one expression statement, which binds no name there. An error that escaped
    would surface as a SystemError in the user's loop, and SystemExit would end the process: hence the bare except.
    """
    given = {
        "STANDARD": _standard_modules(),
        "OPTIONS": options,
        "REPORT": place.report,
        "LEFT_AT": LEFT_AT,
        "FILLED_AT": FILLED_AT,
        "BLOB": place.blob,
        "AREA": place.area,
        "VERB": verb,
        "PID": process.namespace_pids[-1],
        "EXPIRES": time.time() + valid_seconds,
        "__name__": _LOADER,
    }
    _, code = modules[_LOADER]
    packed = binascii.b2a_base64(zlib.compress(marshal.dumps((code, given), 2), 6), newline=False).decode()
    return (
        "try:\n"
        " (lambda m, b, z: (lambda t: (exec(m.loads(t[0]) if type(t[0]) is bytes else t[0], t[1]), t[1]['run']()))"
        f"(m.loads(z.decompress(b.a2b_base64('{packed}')))))"
        "(__import__('marshal'), __import__('binascii'), __import__('zlib'))\n"
        "except BaseException:\n pass\n"
    )


@functools.cache
def _compiled_here() -> Modules:
    return {
        name: (package, marshal.dumps(compile(text, f"<{name}>", "exec", dont_inherit=True, optimize=0)))
        for name, (package, text) in sources().items()
    }


@functools.cache
def _standard_modules() -> frozenset[str]:
    """Modules of the standard library that the hooks import: top-level names."""
    names = {name for _, text in sources().values() for name in _STANDARD.findall(text)}
    return frozenset(names & sys.stdlib_module_names)


def _cache_file(process: Process, texts: dict[str, tuple[bool, str]]) -> Path:
    home = os.path.expanduser("~")
    kept = home if os.path.isabs(home) else os.devnull  # a container's uid may have no home: nothing is kept then
    base = Path(os.environ.get("XDG_CACHE_HOME") or f"{kept}/.cache") / "gpuwatch" / "payload"
    try:
        interpreter = os.stat(process.executable)
        key = f"{process.executable} {interpreter.st_size} {interpreter.st_mtime_ns} {process.python} {sorted(texts.items())}"
    except OSError:
        key = f"{process.pid} {time.time_ns()}"  # not to be found again
    return base / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.bin"


def _checked(codes: Any, texts: dict[str, tuple[bool, str]]) -> Modules:
    if not isinstance(codes, dict) or set(codes) != set(texts):
        raise ValueError("not the modules that were asked for")
    return codes


def _keep(cache: Path, raw: bytes) -> None:
    try:
        cache.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        partial = cache.with_suffix(f".{os.getpid()}")
        partial.write_bytes(raw)
        partial.replace(cache)
    except OSError:
        pass  # it will be compiled again
