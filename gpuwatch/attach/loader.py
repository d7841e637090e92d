"""The part of an attach's text that runs in the target: a package from memory, no file, no sys.path entry.

`SOURCE` is executed in a private dictionary with MODULES, STANDARD (names of the library's modules that these import),
OPTIONS, REPORT, EXPIRES and VERB; Python 3.9 syntax. ctypes is in
every process that has imported torch.
"""

#: Room that a report needs at its address, and its first byte once it is there (before: 0, or the "/" of a path).
REPORT_BYTES = 480
REPORTED = 1

SOURCE = r'''
def report(text):
    import ctypes
    raw = text.encode("utf-8", "replace")[:440]
    ctypes.memmove(REPORT + 8, raw + b"\0", len(raw) + 1)
    ctypes.memmove(REPORT, b"\1", 1)


def load():
    import importlib.machinery
    import importlib.util
    import marshal
    import sys

    class Memory:
        """Finds and loads gpuwatch_hooks from the text that was injected."""

        @staticmethod
        def find_spec(name, path=None, target=None):
            if name not in MODULES:
                return None
            return importlib.machinery.ModuleSpec(name, Memory, is_package=MODULES[name][0])

        @staticmethod
        def create_module(spec):
            return None

        @staticmethod
        def exec_module(module):
            _, code = MODULES[module.__name__]
            name = "<%s>" % module.__name__
            code = marshal.loads(code) if isinstance(code, bytes) else compile(code, name, "exec", dont_inherit=True)
            exec(code, module.__dict__)

    def forget():
        if Memory in sys.meta_path:
            sys.meta_path.remove(Memory)
        for name in [name for name in sys.modules if name == "gpuwatch_hooks" or name.startswith("gpuwatch_hooks.")]:
            del sys.modules[name]

    sys.meta_path.append(Memory)
    try:
        from gpuwatch_hooks import attached
    except BaseException:
        forget()
        raise
    attached.forget = forget
    return attached


def in_import_lock():
    """Whether this thread was interrupted inside the import system's own code, whose locks are not made for that.

    Before Python 3.12 an import of ours there takes away what the interrupted one has noted (KeyError in the job's import,
    seen once in 40 attaches to a job that does nothing but import), and one of the same module waits for itself for ever.
    """
    import sys

    frame, interrupted = sys._getframe(), True
    while frame is not None:
        name, code = frame.f_globals.get("__name__"), frame.f_code
        if code.co_filename.startswith("<frozen importlib") and (interrupted or code.co_name in IMPORT_LOCKS):
            return True
        if code.co_filename != "<string>" or name not in ("gpuwatch_attach", "__main__"):
            interrupted = False
        frame = frame.f_back
    return False


IMPORT_LOCKS = ("acquire", "release", "has_deadlock", "_get_module_lock", "cb", "_lock_unlock_module")


def under_import():
    """A module that somebody is importing at this moment and that the hooks would get half of, or None.

    Ours would fail on the half, and, importing parts of torch out of turn, could make the job's own import fail.
    """
    import sys

    for name, module in list(sys.modules.items()):
        if (name in STANDARD or name.partition(".")[0] == "torch") and getattr(
            getattr(module, "__spec__", None), "_initializing", False
        ):
            return name
    return None


def in_our_hooks():
    """Whether this thread was interrupted in one of our own functions: it must not find its modules gone when it goes on."""
    import sys

    frame = sys._getframe()
    while frame is not None:
        if str(frame.f_globals.get("__name__", "")).partition(".")[0] == "gpuwatch_hooks":
            return True
        frame = frame.f_back
    return False


def main():
    import sys
    import time

    if in_import_lock():
        return "locked"
    if time.time() > EXPIRES:
        return "expired"
    present = sys.modules.get("gpuwatch_hooks")
    if VERB == "end":
        if present is None:
            return "absent"
        from gpuwatch_hooks import attached

        return attached.end(in_our_hooks())
    if "torch" not in sys.modules:
        return "no_torch"
    half = under_import()
    if half is not None:
        return "importing: %s" % half
    if present is None:
        attached = load()
    else:
        from gpuwatch_hooks import attached
    return attached.begin(OPTIONS)


import gc

# What we allocate would set off a collection of everything, for which one job stood still for 250 ms.
collecting = gc.isenabled()
gc.disable()
try:
    answer = main()
except BaseException as error:
    answer = "failed: %s: %s" % (type(error).__name__, error)
finally:
    if collecting:
        gc.enable()
try:
    report(answer)
except BaseException:
    pass
'''
