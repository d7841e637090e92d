"""Something to be done when a module is imported, now or ever: without importing it, and without a thread that looks.

A finder at the head of sys.meta_path lets the others find the module, then puts one step behind its loader. It leaves when
it has seen everything that it was waiting for.
"""

import sys
import threading


class Waiter:
    """Calls `callbacks[name](module)` once for each name (full module name); `leave` to stop waiting. Callbacks may raise."""

    def __init__(self, callbacks, on_error):
        self._callbacks = dict(callbacks)
        self._on_error = on_error
        self._asking = set()  # threads that are asking the other finders, which import things themselves

    def begin(self):
        """Call back at once for what is imported already, wait for the rest."""
        for name in list(self._callbacks):
            module = sys.modules.get(name)
            # A module is in sys.modules while it is still running; then its names are not there yet, and never will be for us.
            if module is not None and not getattr(getattr(module, "__spec__", None), "_initializing", False):
                self._found(name, module)
        if self._callbacks:
            sys.meta_path.insert(0, self)

    def leave(self):
        """Stop waiting. Idempotent."""
        self._callbacks.clear()
        for index, finder in enumerate(sys.meta_path):
            if finder is self:  # not ==, which other finders may not stand
                del sys.meta_path[index]
                return

    def find_spec(self, name, path=None, target=None):
        """The import system's question; ours is the others' answer, with a step behind the loader of a module waited for."""
        me = threading.get_ident()
        if name not in self._callbacks or me in self._asking:
            return None
        self._asking.add(me)
        try:
            spec = _ask_others(self, name, path, target)
        finally:
            self._asking.discard(me)
        try:
            if spec is not None:
                self._follow(name, spec.loader)
        except Exception as error:  # an importer that takes no step behind it: the module comes as it would have
            self._on_error(error)
        return spec

    def _follow(self, name, loader):
        run = loader.exec_module

        def exec_module(module):
            run(module)
            if loader.__dict__.get("exec_module") is exec_module:
                del loader.exec_module
            self._found(name, module)

        loader.exec_module = exec_module  # on this one loader object, which keeps its type and all else that it can do

    def _found(self, name, module):
        callback = self._callbacks.pop(name, None)
        try:
            if callback is not None:
                callback(module)
        except Exception as error:
            self._on_error(error)
        if not self._callbacks:
            self.leave()


def _ask_others(own, name, path, target):
    for finder in list(sys.meta_path):
        find_spec = getattr(finder, "find_spec", None)
        spec = find_spec(name, path, target) if find_spec is not None and finder is not own else None
        if spec is not None:
            return spec
    return None
