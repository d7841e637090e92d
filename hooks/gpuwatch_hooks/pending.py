"""Have the main thread call a function between two of its bytecodes, from another thread."""

import contextlib
import threading

_waiting = []  # ctypes objects must live until they have been called


def call(function, patience_seconds):
    """Whether `function`, which must not raise, has run in the main thread by then; inside C code it is not reached."""
    import ctypes

    done = threading.Event()

    def run(_argument):
        with contextlib.suppress(Exception):
            function()
        done.set()
        return 0

    entrance = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p)(run)
    _waiting.append(entrance)
    if ctypes.pythonapi.Py_AddPendingCall(entrance, None) != 0:  # its queue of 32 is full
        _waiting.remove(entrance)
        return False
    if not done.wait(patience_seconds):
        return False
    _waiting.remove(entrance)
    return True
