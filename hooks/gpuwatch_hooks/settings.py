"""What the hooks may be told: by the environment, by the caller, and by the daemon.

A `Settings` never changes; the session swaps the whole object with one assignment, so that a step which reads
`session.settings` once sees a consistent set without any lock.
"""

import collections
import os

from . import wire

Settings = collections.namedtuple(
    "Settings",
    (
        "every",  # per-tensor statistics on every n-th step
        "histograms",  # whether log2 histograms are taken
        "overhead_budget",  # share of the step time that the hooks may take (ratio)
        "ring_slots",
        "socket",  # path of the daemon's socket, or None: look where daemons live
        "run",  # name of the run, or None: made from the program's name
        "token",  # one per `gpuwatch run`, joins the ranks of one job; or None
        "detach_after_seconds",  # attached hooks leave when no daemon has been reached for so long; 0: never
        "kernel",  # what reads gradients on a GPU, one of KERNELS
        "fixed",  # names that the user set explicitly: a daemon's defaults do not replace them
    ),
)
DEFAULTS = Settings(1, True, 0.01, wire.DEFAULT_SLOTS, None, None, None, 600.0, "auto", frozenset())
#: What a daemon may change in a running process.
ADJUSTABLE = ("every", "histograms", "overhead_budget", "kernel", "detach_after_seconds")
KERNELS = ("auto", "nvrtc", "triton", "foreach")
MAX_EVERY = 1_000_000
MAX_RING_SLOTS = (wire.MAX_RING_BYTES - wire.RING_HEADER_BYTES) // wire.DEFAULT_SLOT_BYTES

_TRUE = ("1", "true", "yes", "on")
_FALSE = ("0", "false", "no", "off")


def checked(name, value):
    """`value` of an adjustable setting or `ring_slots` in its own type. Raises ValueError when it is impossible."""
    is_flag, is_whole = isinstance(value, bool), isinstance(value, int) and not isinstance(value, bool)
    if name == "histograms" and is_flag:
        return value
    if name == "kernel" and isinstance(value, str) and value in KERNELS:
        return value
    if name == "every" and is_whole and 1 <= value <= MAX_EVERY:
        return value
    if name == "overhead_budget" and (is_whole or isinstance(value, float)) and 0.0 < value <= 1.0:
        return float(value)
    if name == "detach_after_seconds" and (is_whole or isinstance(value, float)) and 0.0 <= value < float("inf"):
        return float(value)
    if name == "ring_slots" and is_whole and 8 <= value <= MAX_RING_SLOTS:
        return value
    raise ValueError("%s cannot be %r" % (name, value))


def _from_text(name, text):
    text = text.strip().lower()
    if name == "histograms":
        if text in _TRUE or text in _FALSE:
            return text in _TRUE
        raise ValueError("%s cannot be %r" % (name, text))
    if name == "kernel":
        return checked(name, text)
    return checked(name, int(text) if name in ("every", "ring_slots") else float(text))


def from_environment(environ=None):
    """Settings from GPUWATCH_HOOKS_* and friends, and a list of sentences about values that could not be used."""
    environ = os.environ if environ is None else environ
    found, complaints = {}, []
    for name in (*ADJUSTABLE, "ring_slots"):
        key = "GPUWATCH_HOOKS_" + name.upper()
        if environ.get(key):
            try:
                found[name] = _from_text(name, environ[key])
            except ValueError:
                complaints.append("%s=%s is not usable; %s is used" % (key, environ[key], getattr(DEFAULTS, name)))
    for name in ("socket", "run", "token"):
        found_text = environ.get("GPUWATCH_" + name.upper())
        if found_text:
            found[name] = found_text
    return DEFAULTS._replace(fixed=frozenset(found), **found), complaints


def adjusted(settings, changes, explicit):
    """`settings` with the adjustable ones among `changes`; impossible values and unknown names are ignored.

    `explicit`: somebody asked for this now, so it also replaces what the environment had fixed.
    """
    taken = {}
    for name in ADJUSTABLE:
        if name in changes and (explicit or name not in settings.fixed):
            try:
                taken[name] = checked(name, changes[name])
            except ValueError:
                continue
    if not taken:
        return settings
    fixed = settings.fixed.union(taken) if explicit else settings.fixed
    return settings._replace(fixed=fixed, **taken)
