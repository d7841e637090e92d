"""Which errors say that memory ran out, on a device or on the host."""

import sys

_TEXTS = ("out of memory", "can't allocate memory", "failed to allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")
MAX_TEXT_CHARS = 300


def text_of(error):
    """The first line of an out-of-memory error; None for any other error, and for none."""
    if error is None:
        return None
    torch = sys.modules.get("torch")
    kind = getattr(torch, "OutOfMemoryError", None) or getattr(getattr(torch, "cuda", None), "OutOfMemoryError", None)
    line = (str(error).strip().splitlines() or [""])[0][:MAX_TEXT_CHARS]
    known = isinstance(error, MemoryError) or (isinstance(kind, type) and isinstance(error, kind))
    if known or (isinstance(error, RuntimeError) and any(text in line for text in _TEXTS)):
        return line or type(error).__name__
    return None
