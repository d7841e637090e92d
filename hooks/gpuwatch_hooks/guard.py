"""The one boundary that nothing of ours crosses: every hook body runs inside it.

It catches Exception, never BaseException, so that Ctrl-C and sys.exit pass; it takes the hook body as a whole; and after
three faults it switches that probe off, says so once and records it, instead of failing at every step for weeks.
"""

import threading
import time

from . import untraced

FAULTS_ALLOWED = 3
_now, _thread = time.perf_counter_ns, threading.get_ident


class _Probe:
    __slots__ = ("faults", "off")

    def __init__(self):
        self.faults = 0
        self.off = False


class Guard:
    """Never-raise boundary with a circuit breaker for each probe.

    `on_fault(probe, error)` is called at every fault, `on_off(probe, faults, text)` once when a probe is switched off; either
    may raise, it changes nothing.
    """

    def __init__(self, on_fault, on_off):
        self._probes = {}
        self._on_fault = on_fault
        self._on_off = on_off

    def wrap(self, probe, function, default=None):
        """`function` as a callable that never raises an Exception: `default` comes back instead, and once the probe is off."""
        state = self._state(probe)
        set_frame_evaluator = untraced.switch()
        fault = self.fault

        def hook(*args, **kwargs):
            if state.off:
                return default
            evaluator = set_frame_evaluator(None)
            try:
                return function(*args, **kwargs)
            except Exception as error:
                fault(probe, error)
                return default
            finally:
                if evaluator is not None:
                    set_frame_evaluator(evaluator)

        return untraced.hide(hook)

    def metered(self, meter, probe, function, default=None, elsewhere=False):
        """The same, with what it takes added to a Meter, on the thread of that meter.

        On other threads `default` comes back at once; with `elsewhere` it is called there too, and nothing is added.
        """
        state = self._state(probe)
        set_frame_evaluator = untraced.switch()
        fault = self.fault

        def hook(*args, **kwargs):
            followed = _thread() == meter.thread
            if state.off or not (followed or elsewhere):
                return default
            outermost = followed and not meter.since
            evaluator = set_frame_evaluator(None)
            try:
                if outermost:
                    meter.since = _now()
                return function(*args, **kwargs)
            except Exception as error:
                fault(probe, error)
                return default
            finally:
                since = meter.since
                if outermost:  # before any call, in which Ctrl-C may arrive
                    meter.since = 0
                if evaluator is not None:
                    set_frame_evaluator(evaluator)
                if outermost:
                    meter.taken_ns += _now() - since

        return untraced.hide(hook)

    def run(self, probe, function, *args):
        """Call `function(*args)` inside the boundary; its result, or None after a fault or when the probe is off."""
        state = self._probes.get(probe) or self._state(probe)
        if state.off:
            return None
        try:
            return function(*args)
        except Exception as error:
            self.fault(probe, error)
            return None

    def together(self, calls):
        """One function that makes all `calls`, pairs (probe, function), with its arguments; a fault of one stops no other."""
        bound = [(self._state(probe), probe, function) for probe, function in calls]

        def run(*args):
            for state, probe, function in bound:
                if not state.off:
                    try:
                        function(*args)
                    except Exception as error:
                        self.fault(probe, error)

        return run

    def is_off(self, probe):
        """Whether faults have switched this probe off."""
        return self._state(probe).off

    def faults(self):
        """Faults so far, by probe: {probe: count}, of those that had any."""
        return {name: state.faults for name, state in list(self._probes.items()) if state.faults}

    def fault(self, probe, error):
        """Count a fault of `probe`; the third switches it off. Never raises."""
        try:
            state = self._state(probe)
            state.faults += 1
            self._on_fault(probe, error)
            if state.faults >= FAULTS_ALLOWED and not state.off:
                state.off = True
                # Only the text is kept: the error's traceback would keep the step's tensors alive.
                self._on_off(probe, state.faults, "%s: %s" % (type(error).__name__, str(error)[:200]))
        except Exception:  # noqa: S110 - reporting a fault is never worth another
            pass

    def _state(self, probe):
        state = self._probes.get(probe)
        if state is None:
            state = self._probes.setdefault(probe, _Probe())
        return state
