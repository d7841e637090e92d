"""gpuwatch: profiling and diagnostics for PyTorch training.

`import gpuwatch; gpuwatch.watch(model, optimizer)` reaches the hooks' public names lazily, so that the daemon and the
command line never load what only a training process needs.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    hooks = importlib.import_module("gpuwatch_hooks")
    if name in hooks.__all__:
        return getattr(hooks, name)
    raise AttributeError(f"module 'gpuwatch' has no attribute {name!r}")
