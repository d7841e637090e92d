"""Which session a logging call belongs to, and how its values get out of a process that never takes an optimizer step.

A logging call does not begin to record at once: a script that logs its settings and then forks its ranks, or opens DataLoader
workers, must not have a ring and a thread by then (its forked children would have to be silent for ever). What is logged
waits in the bounded outbox until the first optimizer step. A process that logs but never steps, such as an evaluation, begins
to record with the first call after PATIENCE_SECONDS, or delivers at its exit.
"""

import atexit
import multiprocessing
import os
import sys
import time

from . import forks
from . import session as sessions

PATIENCE_SECONDS = 10.0
_first_calls = {}  # session -> (monotonic seconds, pid) of its first logging call


def current():
    """The Session to log to, or None where nothing is recorded (over, a DataLoader worker)."""
    session = sessions.current()
    session.announces_absence = True
    if session.armed and not session.over:
        return session
    if session.over or _is_worker():
        return None
    if multiprocessing.parent_process() is None:
        _begin_late(session)
    return session


def _is_worker():
    data = sys.modules.get("torch.utils.data")
    return data is not None and data.get_worker_info() is not None


def _begin_late(session):
    now = time.monotonic()
    if session not in _first_calls:
        _first_calls.clear()
        _first_calls[session] = (now, os.getpid())
        forks.watch(session)  # in a forked child, what was logged before it is its parent's to send
        atexit.register(_deliver, session)
        return
    since, pid = _first_calls[session]
    if now - since > PATIENCE_SECONDS and pid == os.getpid():
        session.arm()


def _deliver(session):
    _, pid = _first_calls.get(session, (0, 0))
    if pid == os.getpid() and not session.armed and not session.over and not _is_worker():
        session.deliver_at_exit()
