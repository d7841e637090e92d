"""gpuwatch's hooks: what runs inside a training process. Standard library and torch only; torch is never imported by us first.

The public functions (`watch`, `log`, ...) are looked up when they are first used, so that a process which only carries the
hooks, or a daemon which only reads `wire`, pays for nothing else.
"""

import importlib
import sys
import types

__version__ = "0.1.0"

_HOME = {
    "watch": "watch",
    "log": "log",
    "log_histogram": "log",
    "log_images": "log",
    "log_figure": "log",
    "log_text": "log",
    "feature_maps": "feature_maps",
    "lr_find": "lr_find",
    "compare_amp": "amp.compare",
    "compare_int8": "int8",
}
__all__ = list(_HOME)


def __getattr__(name):
    if name not in _HOME:
        raise AttributeError("module 'gpuwatch_hooks' has no attribute %r" % name)
    value = getattr(importlib.import_module("gpuwatch_hooks." + _HOME[name]), name)
    globals()[name] = value
    return value


def __dir__():
    return sorted({*globals(), *__all__})


class _Package(types.ModuleType):
    """The import system binds a submodule to its package: `gpuwatch_hooks.watch` would turn from a function into a module."""

    def __setattr__(self, name, value):
        if not (name in _HOME and isinstance(value, types.ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
