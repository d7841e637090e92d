"""The part of an attach that runs in the target: a package from memory, no file, no sys.path entry, no import of ours.

`SOURCE` is executed in a private dictionary; Python 3.9 syntax. What it is given:

    VERB, OPTIONS     begin or end, and what `attached.begin` takes
    PID, EXPIRES      whom it is for (a child that is forked while the call waits has another number), until when (time.time())
    REPORT, AREA      address to report at, or the path of a file; (address, bytes) of the mapping that it all lies in, or None
    BLOB              (address, bytes) of the packed modules, or the path of a file, or None
    STANDARD          frozenset of names of the library's modules that the hooks import

What the main thread does itself is made short, because the job stands still for it: it starts a thread, which unpacks and
executes the modules in slices of 1.5 ms, and then puts them in when that thread asks it to, between two bytecodes again.
Measured: 0.1 ms and 3.5 ms of CPU time; doing all of it at once held the main thread up for 9 to 16 ms. ctypes is in every
process that has torch.
"""

#: Room that a report needs at its address; its first byte once it is there (before: 0, or the "/" of a path); where the
#: attacher notes that nobody waits for it any more, and that the packed modules are there.
REPORT_BYTES = 480
REPORTED = 1
LEFT_AT, FILLED_AT = 7, 6

SOURCE = r'''
def run():
    """In the main thread, between two bytecodes. Lets no error out."""
    try:
        answer = entered()
    except BaseException as error:
        answer = "failed: %s: %s" % (type(error).__name__, error)
    try:
        if answer is not None:
            if isinstance(BLOB, str):
                taken()
            report(answer)
    except BaseException:
        pass


def entered():
    """The answer, or None where a thread of ours will give it."""
    import os
    import sys
    import time

    if os.getpid() != PID:
        return None
    if time.time() > EXPIRES:
        return "expired"
    package = sys.modules.get("gpuwatch_hooks")
    loading = getattr(package, "loading_in", None)  # set while a loader is at work
    if loading is not None and loading != PID:
        forget()  # forked from a process in the middle of an attach, without the thread that was at it
        package = None
    elif loading is not None:
        return "loading"
    if package is not None:  # an attach's, or those of `gpuwatch run`, whose modules are files and may yet have to be imported
        reason = unfit(to_leave=VERB == "end")
        if reason:
            return reason
        from gpuwatch_hooks import attached

        return quietly(attached.end, in_our_hooks()) if VERB == "end" else quietly(attached.begin, OPTIONS)
    if VERB == "end":
        return "absent"
    if "torch" not in sys.modules:
        return "no_torch"
    missing = [name for name in STANDARD if name not in sys.modules]
    if missing and in_import_lock():
        return "locked"
    for name in missing:  # here and not in the thread: a child that is forked meanwhile must find no module half loaded
        __import__(name)
    import _thread

    root = type(sys)("gpuwatch_hooks")
    root.loading_in = PID
    sys.modules["gpuwatch_hooks"] = root
    try:
        _thread.start_new_thread(load, (root,))
    except RuntimeError as error:
        forget()
        return "refused: another thread (%s)" % error
    except BaseException:
        forget()
        raise
    return None


def taken():
    """The packed modules as bytes. Memory is filled while we wait, which the job does not; a file is gone once it is read."""
    import time

    if isinstance(BLOB, tuple):
        import ctypes

        waiting = 0
        while ctypes.string_at(REPORT + FILLED_AT, 1) != b"\1":
            if waiting > 5000:
                raise EOFError("the attacher has gone away")
            waiting += 1
            time.sleep(0.001)
        return ctypes.string_at(*BLOB)
    import os

    with open(BLOB, "rb") as file:
        blob = file.read()
    os.unlink(BLOB)
    return blob


def load(root):
    """The thread: load all modules, have the main thread put them in, report. It may die with the process at any point."""
    import signal
    import time

    try:
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # the job's signals are for the job's threads
        attached = unpacked(root, taken())
        while (half := under_import()) is not None and time.time() < EXPIRES:
            report("importing: %s" % half, done=False)
            time.sleep(0.02)
        ready = attached.Prepared(OPTIONS, pauses())
        answer = settled(root, attached, ready)
    except BaseException as error:
        forget()
        answer = getattr(error, "answer", None) or "failed: %s: %s" % (type(error).__name__, error)
    try:
        report(answer)
    except BaseException:
        pass
    try:
        if answer == "installed":
            attached.stay(ready, OPTIONS)
    except BaseException:
        pass


def unpacked(root, blob):
    """Execute the modules in the order in which they come, which is that of their imports of each other; the one to call.

    Without the import system: no lock of its that a forked child could find taken, no finder that stays in sys.meta_path.
    """
    import marshal
    import sys
    import zlib

    pause = pauses()
    modules = marshal.loads(zlib.decompress(blob))
    made = {}
    for name, package, eager, code in modules:
        if package or not eager:
            made[name] = made_module(root if name == root.__name__ else type(sys)(name), name, package)
            if not eager:
                put_off(made[name], code)
    for name, package, eager, code in modules:
        pause()
        module = made.get(name) or made_module(type(sys)(name), name, False)
        if eager:
            code = unmarshalled(name, code)
            pause()
            exec(code, module.__dict__)
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, module)
    attached = sys.modules["gpuwatch_hooks.attached"]
    attached.forget = forget
    return attached


def unmarshalled(name, code):
    import marshal

    return marshal.loads(code) if isinstance(code, bytes) else compile(code, "<%s>" % name, "exec", dont_inherit=True)


def put_off(module, code):
    """Execute `code` when something of the module is first asked for: a third of them is never needed."""
    import time

    import _thread

    at_work = {}  # "thread": the one that executes it; setdefault is one atomic step, and a lost thread leaves no lock taken

    def fill(attribute):
        if attribute.startswith("__"):
            raise AttributeError(attribute)
        me, waited = _thread.get_ident(), 0
        while at_work.setdefault("thread", me) != me and module.__dict__.get("__getattr__") is fill:
            waited += 1
            if waited > 2000:
                raise AttributeError(attribute)
            time.sleep(0.001)
        if module.__dict__.get("__getattr__") is fill and not at_work.get("begun"):
            at_work["begun"] = True
            exec(unmarshalled(module.__name__, code), module.__dict__)
            if module.__dict__.get("__getattr__") is fill:
                del module.__getattr__
        try:
            return module.__dict__[attribute]
        except KeyError:
            raise AttributeError(attribute) from None

    module.__getattr__ = fill


def made_module(module, name, package):
    import importlib.machinery
    import sys

    module.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=package)
    module.__package__ = name if package else name.rpartition(".")[0]
    if package:
        module.__path__ = []
    sys.modules[name] = module
    return module


def pauses():
    """A function to be called often: it lets the job's threads run after each 0.5 ms of ours, and keeps the collector asleep.

    What we allocate would set off a collection of everything that the job has, for which one job stood still for 250 ms;
    one of the youngest objects, which starts the count anew, takes a tenth of a millisecond.
    """
    import gc
    import time

    began = time.thread_time()

    def pause():
        nonlocal began
        if gc.isenabled() and gc.get_count()[0] > gc.get_threshold()[0] // 4:
            collect_youngest()
        if time.thread_time() - began > 0.0005:
            time.sleep(0.001)
            began = time.thread_time()

    return pause


def collect_youngest():
    import gc
    import sys

    if getattr(sys, "_is_gil_enabled", lambda: True)():  # without generations there are no youngest: it would be everything
        gc.collect(0)


def settled(root, attached, ready):
    """Have the main thread install what is loaded, at a moment at which it may; what became of it."""
    import os
    import time

    import _thread

    while time.time() < EXPIRES:
        came, turn = _thread.allocate_lock(), {}
        came.acquire()

        def come_by(came=came, turn=turn):
            if os.getpid() != PID or turn.setdefault("of", "main") != "main":
                return
            try:
                answer = unfit() or quietly(attached.begin, OPTIONS, ready)
                turn["answer"] = None if answer.partition(":")[0] in PASSING else answer
                if turn["answer"] is None:
                    report(answer, done=False)
                elif answer != "installed":
                    ready.close()
            except BaseException as error:
                forget()
                turn["answer"] = "failed: %s: %s" % (type(error).__name__, error)
            finally:
                came.release()

        if call_in_main(come_by):
            if not came.acquire(timeout=max(0.0, EXPIRES - time.time())) and turn.setdefault("of", "nobody") == "nobody":
                break
            if "answer" not in turn:
                came.acquire()
            if turn["answer"]:
                root.loading_in = None
                return turn["answer"]
        time.sleep(0.005)
    ready.close()
    forget()
    return "expired"


def call_in_main(function):
    """File `function` as a call that the main thread makes between two bytecodes; False when the queue is full."""
    import ctypes

    api = ctypes.PyDLL(None, handle=ctypes.pythonapi._handle)  # one of our own: types set on the shared one would be seen
    held = ctypes.py_object(function)

    def once():
        api.Py_DecRef(ctypes.py_object(once))
        function()

    text = b"try:\n (lambda c: c.cast(%d, c.py_object).value())(__import__('ctypes'))\nexcept BaseException:\n pass\n"
    once.text = ctypes.create_string_buffer(text % id(once))  # lives as long as the function that the call itself holds
    api.Py_IncRef(ctypes.py_object(once))
    if api.Py_AddPendingCall(ctypes.cast(api.PyRun_SimpleString, ctypes.c_void_p), once.text) == 0:
        return True
    api.Py_DecRef(ctypes.py_object(once))
    return False


def quietly(function, *arguments):
    """Call it without a collection on the way; no other thread of the job sees the switch, for we hold the interpreter."""
    import gc

    collecting = gc.isenabled()
    gc.disable()
    try:
        return function(*arguments)
    finally:
        if collecting:
            collect_youngest()
            gc.enable()


def unfit(to_leave=False):
    """Why the main thread may not install anything at this moment, or None."""
    if in_import_lock():
        return "locked"
    half = None if to_leave else under_import()
    return "importing: %s" % half if half else None


def forget():
    """Take our modules out of the interpreter."""
    import sys

    for name in [name for name in sys.modules if name == "gpuwatch_hooks" or name.startswith("gpuwatch_hooks.")]:
        del sys.modules[name]


def report(text, done=True):
    """For the attacher to read; where nobody waits for it any more, unmap what was brought."""
    raw = text.encode("utf-8", "replace")[:440]
    if isinstance(REPORT, str):
        if done:
            with open(REPORT, "r+b") as file:
                file.write(raw)
        return
    import ctypes

    ctypes.memmove(REPORT + 8, raw + b"\0", len(raw) + 1)
    if done and AREA and ctypes.string_at(REPORT + LEFT_AT, 1) == b"\1":
        unmap = ctypes.CDLL(None).munmap
        unmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
        unmap(*AREA)
    elif done:
        ctypes.memmove(REPORT, b"\1", 1)  # from here on somebody else may unmap it


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
        if name != "gpuwatch_attach" and (code.co_filename != "<string>" or name != "__main__"):
            interrupted = False
        frame = frame.f_back
    return False


PASSING = ("locked", "importing", "stepping")  # what is over a moment later
IMPORT_LOCKS = ("acquire", "release", "has_deadlock", "_get_module_lock", "cb", "_lock_unlock_module")


def under_import():
    """A module that somebody is importing at this moment and that the hooks would get half of, or None.

    Ours would fail on the half, and, importing parts of torch out of turn, could make the job's own import fail.
    """
    import sys

    # Whoever imports a module holds its lock. Without that table all modules are looked at, which takes 2 ms of the job.
    locks = getattr(sys.modules.get("_frozen_importlib"), "_module_locks", sys.modules)
    for name in list(locks):
        if name in STANDARD or name.startswith("torch"):
            spec = getattr(sys.modules.get(name), "__spec__", None)
            if getattr(spec, "_initializing", False):
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
'''
