"""Started by Python itself in a job under `gpuwatch run`: wait for torch, then let the user's own sitecustomize run.

This folder is on PYTHONPATH, so every Python program that the job starts passes here, also one that is years older than
ours: the file keeps to what Python 2.7 and 3 both read. It leaves no entry on sys.path (only in the environment, for the
children), imports nothing that Python has not loaded already, and never lets an exception of ours through.
"""

import os
import sys

try:
    from _thread import get_ident
except ImportError:  # Python 2
    from thread import get_ident

_HERE = os.path.dirname(os.path.abspath(__file__))


class _WaitForTorch(object):
    """Meta-path finder that lets the others find torch, and puts one step behind its loader."""

    def __init__(self):
        self.asking = set()  # threads that are inside `find_spec`: some programs look for torch without importing it

    def find_spec(self, name, path=None, target=None):
        thread = get_ident()
        if name != "torch" or thread in self.asking:
            return None
        self.asking.add(thread)
        try:
            spec = self._ask(name, path, target)
        finally:
            self.asking.discard(thread)
        try:
            if spec is not None:
                self._follow(spec)
        except Exception:  # noqa: S110 - an odd importer: torch comes as it would have
            pass
        return spec

    def _ask(self, name, path, target):
        for finder in list(sys.meta_path):
            find_spec = getattr(finder, "find_spec", None)
            spec = find_spec(name, path, target) if find_spec is not None and finder is not self else None
            if spec is not None:
                return spec
        return None

    def _follow(self, spec):
        """Set `exec_module` on the loader object itself, which keeps its type and everything else that it can do."""
        loader = spec.loader
        run = loader.exec_module

        def exec_module(module):
            run(module)
            if loader.__dict__.get("exec_module") is exec_module:
                del loader.exec_module
            self.leave()
            _start()

        loader.exec_module = exec_module

    def leave(self):
        for index, finder in enumerate(sys.meta_path):
            if finder is self:  # not ==, which other finders may not stand
                del sys.meta_path[index]
                return


def _start():
    try:
        _hooks().start()
    except Exception:
        sys.stderr.write("gpuwatch: the hooks could not be loaded (%s); training goes on\n" % (sys.exc_info()[1],))


def _hooks():
    """gpuwatch_hooks.bootstrap, loaded by its path: sys.path is the user's."""
    import importlib.util

    if "gpuwatch_hooks" not in sys.modules:
        folder = os.path.dirname(_HERE)
        spec = importlib.util.spec_from_file_location(
            "gpuwatch_hooks", os.path.join(folder, "__init__.py"), submodule_search_locations=[folder]
        )
        module = sys.modules["gpuwatch_hooks"] = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules["gpuwatch_hooks"]
            raise
    import importlib

    return importlib.import_module("gpuwatch_hooks.bootstrap")


def _wait():
    if os.environ.get("GPUWATCH") != "1" or sys.version_info < (3, 9):
        return
    if "torch" in sys.modules:
        _start()
    elif not any(isinstance(finder, _WaitForTorch) for finder in sys.meta_path):
        sys.meta_path.insert(0, _WaitForTorch())


def _leave_path():
    """Take this folder off sys.path; what stood behind it comes back: there the user's own sitecustomize is looked for."""
    behind, found = list(sys.path), False
    for index, entry in enumerate(list(sys.path)):
        if isinstance(entry, str) and os.path.abspath(entry) == _HERE:
            if not found:
                behind, found = sys.path[index + 1 :], True
            sys.path.remove(entry)
    sys.path_importer_cache.pop(_HERE, None)
    return [entry for entry in behind if not (isinstance(entry, str) and os.path.abspath(entry) == _HERE)]


def _next_one(behind):
    """Run the sitecustomize that would have run without us, as the module that Python will know by that name.

    Its exceptions are the user's: they pass, and Python reports them as ever.
    """
    ours = sys.modules.pop("sitecustomize", None)
    try:
        if sys.version_info < (3, 4):
            import imp

            found = imp.find_module("sitecustomize", behind)
            imp.load_module("sitecustomize", *found)
            return
        from importlib.machinery import PathFinder
        from importlib.util import module_from_spec

        spec = PathFinder.find_spec("sitecustomize", behind)
    except ImportError:
        spec = None
    if spec is None or spec.loader is None:
        # There is none. Python expects to find under the name what it has begun to load.
        if ours is not None:
            sys.modules["sitecustomize"] = ours
        return
    theirs = sys.modules["sitecustomize"] = module_from_spec(spec)
    try:
        spec.loader.exec_module(theirs)
    except BaseException:
        sys.modules.pop("sitecustomize", None)
        raise


try:
    _behind = _leave_path()
    _wait()
except Exception:
    _behind = []
_next_one(_behind)
