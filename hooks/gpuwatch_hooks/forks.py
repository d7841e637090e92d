"""A forked child of a recording process records nothing: parent and child would overwrite each other's ring.

The child's session goes silent, its copies of the descriptors are closed (or the daemon would not see its parent die), and
it never wakes again. A process that had not begun to record forks children that are as free as it was: ranks that a
launcher forks may each begin at their own first optimizer step. A silent child that trains all the same says so, once for
all children of one parent: else its steps would be missed without a word.
"""

import mmap
import os
import sys
import weakref

from . import notices, untraced

_sessions = weakref.WeakSet()
_registered = False
_told = None  # one byte that parent and children share: whether one of them has said it


def watch(session):
    """Silence `session` in every child that is forked from now on. The interpreter has no way to take this back."""
    global _registered, _told  # noqa: PLW0603 - at-fork handlers are for the life of the process
    _sessions.add(session)
    if _told is None:
        _told = mmap.mmap(-1, 1)
    if not _registered:
        os.register_at_fork(after_in_child=_silence)
        _registered = True


def forget(session):
    """`session` records no more: with the last one goes the shared byte, a page of memory. Children have their own mapping."""
    global _told
    _sessions.discard(session)
    if not _sessions and _told is not None:
        shared, _told = _told, None
        shared.close()


def _silence():
    for session in list(_sessions):
        try:
            recorded = session.armed and not session.over
            session.silence()
            if recorded:
                _listen_for_steps()
        except Exception:  # noqa: S110 - the child belongs to the user
            pass


def _listen_for_steps():
    """Have the child's first optimizer step say that nobody records it."""
    optimizer = sys.modules.get("torch.optim.optimizer")
    if optimizer is not None and not _told[0]:
        # Never taken out again: torch is iterating over its hooks when it calls this one.
        optimizer.register_optimizer_step_post_hook(untraced.hide(_after_step))


def _after_step(_optimizer, _args, _kwargs):
    try:
        data = sys.modules.get("torch.utils.data")
        if _told[0] or (data is not None and data.get_worker_info() is not None):
            return  # a DataLoader's worker is no trainer, whatever it does
        _told[0] = 1
        notices.say_once(
            "process %d was forked from one that is recorded, and trains too: its steps are not recorded (a process that is "
            "spawned, or forked before the first optimizer step, gets a record of its own)" % os.getpid()
        )
    except Exception:  # noqa: S110 - as above
        pass
