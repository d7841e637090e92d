"""What a session needs to begin, made before its first step by an attach: ring, control thread, number of the attempt.

All of it is system calls. In the first step each of them would hand the interpreter's lock to whoever waits for it, and the
job would stand still until it comes back: 8 ms for the start of one thread, on a busy machine.
"""

import os
import threading
import uuid

from . import control, forks, ring


class Spare:
    """For the process that made it alone: a child that is forked while it waits would write into its parent's memory."""

    def __init__(self, session):
        """On a thread of ours, which is going to call `wait`, or `close`.

        Raises OSError where the kernel has no memory for a ring or no descriptors."""
        self.attempt_id = uuid.uuid4().hex
        self.ring = ring.RingWriter(session.settings.ring_slots)
        try:
            self.control = control.Control(session)
        except OSError:
            self.ring.close()
            raise
        self._pid = os.getpid()
        self._end = {}  # "is": started, or unused; setdefault is one atomic step
        self._wake = threading.Lock()  # held until then
        self._wake.acquire()
        forks.watch(session)

    def is_ours(self):
        """Whether this process made it; in a forked child its copies are closed."""
        if os.getpid() == self._pid:
            return True
        self.close()
        return False

    def close(self):
        """Not needed after all. Idempotent."""
        unused, self.ring = self.ring, None
        if unused is not None:
            unused.close()
            self.control.abandon()
            if self._end.setdefault("is", "unused") == "unused":
                self._wake.release()

    def start_control(self):
        """From the first step: have the thread in `wait` start the control thread."""
        if self._end.setdefault("is", "started") == "started":
            self._wake.release()

    def wait(self, look, patience_seconds):
        """On a thread of ours: start the control thread once the first step asks for it; `look()` now and then meanwhile.

        Raises RuntimeError where the process may have no more threads.
        """
        while not self._wake.acquire(timeout=patience_seconds):
            look()
        if self._end["is"] == "started":
            self.control.start()
