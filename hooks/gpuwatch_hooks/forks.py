"""A forked child of a recording process records nothing: parent and child would overwrite each other's ring.

The child's session goes silent, its copies of the descriptors are closed (or the daemon would not see its parent die), and
it never wakes again. A process that had not begun to record forks children that are as free as it was: ranks that a
launcher forks may each begin at their own first optimizer step.
"""

import os
import weakref

_sessions = weakref.WeakSet()
_registered = False


def watch(session):
    """Silence `session` in every child that is forked from now on. The interpreter has no way to take this back."""
    global _registered  # noqa: PLW0603 - at-fork handlers are for the life of the process
    _sessions.add(session)
    if not _registered:
        os.register_at_fork(after_in_child=_silence)
        _registered = True


def _silence():
    for session in list(_sessions):
        try:
            session.silence()
        except Exception:  # noqa: S110 - the child belongs to the user
            pass
