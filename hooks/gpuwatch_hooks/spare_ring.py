"""A ring that is made before its session takes its first step, so that the step does not wait for the kernel's memory."""

import os

from . import ring


class SpareRing:
    """For the process that made it alone: a child that is forked while it waits would write into its parent's memory."""

    def __init__(self, slots):
        self._ring = ring.RingWriter(slots)
        self._pid = os.getpid()

    def taken(self):
        """The RingWriter, which is the caller's from now on; None in a forked child, and the second time."""
        found, self._ring = self._ring, None
        if found is not None and os.getpid() != self._pid:
            found.close()
            return None
        return found

    def close(self):
        """Not needed after all."""
        found = self.taken()
        if found is not None:
            found.close()
