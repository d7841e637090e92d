"""What waits for the daemon: handed over by any thread with one append, encoded by the control thread, kept until acknowledged.

The near side (`put_*`, `has_media_room`) is for the training thread: no lock, no system call, bounded; what does not fit is
dropped and counted with its reason, and the counts travel to the daemon as facts. The far side is the control thread's.
"""

import collections
import itertools
import json
import time

from . import wire
from .kept import Kept

#: Scalars that may wait for the control thread, which looks every few hundred milliseconds, and for a daemon that is away.
#: The oldest make room.
MAX_WAITING_SCALARS = 8192
MAX_STAGED_SCALARS = 32768
MAX_WAITING_MEDIA = 32
MAX_WAITING_MEDIA_BYTES = 64 << 20
MAX_WAITING_OTHER = 4096
MAX_FACTS = 256
MAX_FACT_CHARS = 1024
_BATCH_BYTES = 48 * 1024
_ROW_BYTES = 96  # what JSON needs at most for a scalar's row without its tag, or for a name's element count


class Outbox:
    """Bounded hand-over to the control thread; `dropped` counts what was lost, by reason."""

    def __init__(self):
        self._serial = itertools.count(1)
        self._scalars = collections.deque(maxlen=MAX_WAITING_SCALARS)
        self._media = collections.deque()
        self._other = collections.deque()
        self._refused = collections.deque()
        # From here on: the control thread's.
        self.dropped = {}
        self._told = {}
        self._kept = Kept(self._drop)
        self._taken = self._highest = 0
        self._rows = collections.deque()
        self._tables = {}
        self._facts = {}
        self._changed_facts = {}

    # ------------------------------------------------------------------------------------------------- any thread
    def put_scalar(self, tag, step, value):
        """A value under its tag; the oldest waiting one makes room."""
        self._scalars.append((next(self._serial), tag, step, value, time.monotonic_ns()))

    def put_names(self, table, version, first, names, numels):
        """Names for rows `first`... of a table; see session.names."""
        self._put_other("names", table, version, first, tuple(names), tuple(numels))

    def put_facts(self, facts):
        """Facts about the run, a flat dict."""
        self._put_other("facts", dict(facts))

    def _put_other(self, *item):
        if len(self._other) < MAX_WAITING_OTHER:
            self._other.append(item)
        else:
            self._refused.append(item[0] + "_waiting")

    def put_media(self, kind, tag, step, shape, data, held_bytes=0):
        """`data`: bytes-like, or a callable that returns it, run on the control thread. False when too much waits.

        `held_bytes`: the memory that `data` keeps until then.
        """
        if not self.has_media_room(held_bytes):
            return False
        self._media.append((kind, tag, step, shape, data, time.monotonic_ns(), held_bytes))
        return True

    def has_media_room(self, held_bytes):
        """Whether put_media would take data of this size; if not, that is counted, so ask before the data are made."""
        waiting = tuple(self._media)
        room = len(waiting) < MAX_WAITING_MEDIA
        if room and held_bytes + sum(item[-1] for item in waiting) <= MAX_WAITING_MEDIA_BYTES:
            return True
        self._refused.append("media_waiting")
        return False

    def forget_logged(self):
        """In a forked child: what was logged so far is its parent's to send. Names and facts stay: they hold here too."""
        self._scalars.clear()
        self._media.clear()

    def is_idle(self):
        """Whether nothing waits to be taken."""
        return not (self._scalars or self._media or self._other)

    # --------------------------------------------------------------------------------------------- control thread
    def collect(self):
        """Take what waits, without encoding scalars yet: while no daemon listens they need no messages. True when there was."""
        if self.is_idle() and not self._refused:
            return False
        for kind, *item in _taken(self._other):
            self._attempt(kind, self._take_facts if kind == "facts" else self._take_names, *item)
        for item in _taken(self._media):
            self._attempt("media", self._take_media, *item)
        for item in _taken(self._scalars):  # behind the media, whose data may log something
            self._attempt("scalar", self._take_scalar, *item)
        self._drop("scalars_waiting", self._highest - self._taken - self.dropped.get("scalars_waiting", 0))
        self._drop("scalars_kept", len(self._rows) - MAX_STAGED_SCALARS)
        while len(self._rows) > MAX_STAGED_SCALARS:
            self._rows.popleft()
        for reason in _taken(self._refused):
            self._drop(reason)
        return True

    def seal(self):
        """Turn what was collected into numbered messages; a daemon is there to take them."""
        self._send_scalars()
        if self.dropped != self._told:
            self._told = dict(self.dropped)
            self._take_facts({"outbox_dropped": sum(self.dropped.values())})
            self._take_facts({"outbox_dropped_" + reason: count for reason, count in self.dropped.items()})
        if self._changed_facts and not self._kept.has("meta"):  # one at a time: facts that keep changing need no queue
            self._send_facts()

    def unacknowledged(self, after):
        """The messages numbered above `after`, in order."""
        return self._kept.after(after)

    def acknowledge(self, n):
        """Forget the messages up to and including number `n`."""
        self._kept.acknowledge(n)

    def is_delivered(self):
        """Whether everything that was handed over has been acknowledged."""
        return self.is_idle() and not (self._kept or self._rows or self._changed_facts or self.dropped != self._told)

    def repeat_tables(self):
        """Give the name tables and facts new numbers: this daemon does not know what the last one acknowledged."""
        self._kept.forget_if(lambda message: message.kind in ("names", "meta"))
        for table, (version, chunks) in self._tables.items():
            for first in sorted(chunks):
                self._send_names(table, version, first, *chunks[first])
        self._changed_facts = dict(self._facts)

    # ------------------------------------------------------------------------------------------------------ inside
    def _attempt(self, kind, take, *item):
        try:
            take(*item)
        except Exception:
            self._drop(kind + "_fault")

    def _drop(self, reason, count=1):
        if count > 0:
            self.dropped[reason] = self.dropped.get(reason, 0) + count

    def _take_scalar(self, serial, tag, step, value, now):
        self._taken += 1
        self._highest = max(self._highest, serial)
        self._rows.append((str(tag)[: wire.MAX_NAME_CHARS], int(step), float(value), now))

    def _send_scalars(self):
        rows, size = [], 0
        for row in _taken(self._rows):
            rows.append(row)
            size += _ROW_BYTES + len(json.dumps(row[0]))
            if size > _BATCH_BYTES:
                self._kept.add("scalars", {"rows": rows})
                rows, size = [], 0
        if rows:
            self._kept.add("scalars", {"rows": rows})

    def _take_names(self, table, version, first, names, numels):
        known_version, chunks = self._tables.get(table, (None, {}))
        if known_version != version:
            chunks = {}
            self._tables[table] = (version, chunks)
            # A name table that changes at every step must not fill the outbox of a job whose daemon is away.
            used = ((table, version), (table, known_version))
            self._kept.forget_if(
                lambda message: message.kind == "names" and message.about[0] == table and message.about not in used
            )
        names = tuple(str(name)[: wire.MAX_NAME_CHARS] for name in names[: wire.MAX_TENSORS])
        chunks[first] = (names, tuple(int(count) for count in numels[: len(names)]))
        self._send_names(table, version, first, *chunks[first])

    def _send_names(self, table, version, first, names, numels):
        start, size = 0, 0
        for index, name in enumerate(names):
            size += _ROW_BYTES + len(json.dumps(name))
            if size > _BATCH_BYTES or index == len(names) - 1:
                stop = index + 1
                part = {"table": table, "version": version, "first": first + start}
                part.update(names=names[start:stop], numels=numels[start:stop])
                self._kept.add("names", part, about=(table, version))
                start, size = stop, 0

    def _take_media(self, kind, tag, step, shape, data, now, _held_bytes):
        data = bytes(data() if callable(data) else data)
        if len(data) > wire.MAX_MEDIA_BYTES:
            self._drop("media_too_large")
            return
        head = {"kind": kind, "tag": str(tag)[: wire.MAX_NAME_CHARS], "step": int(step), "shape": [int(s) for s in shape]}
        self._kept.add("media", dict(head, bytes=len(data), monotonic_ns=now), data)

    def _take_facts(self, facts):
        for raw_name, raw_value in facts.items():
            name = str(raw_name)[: wire.MAX_NAME_CHARS]
            value = raw_value if isinstance(raw_value, (bool, int, float)) else str(raw_value)[:MAX_FACT_CHARS]
            if (name in self._facts or len(self._facts) < MAX_FACTS) and self._facts.get(name) != value:
                self._facts[name] = self._changed_facts[name] = value

    def _send_facts(self):
        part, size = {}, 0
        for name, value in self._changed_facts.items():
            part[name] = value
            size += len(json.dumps(name)) + len(json.dumps(value)) + 2
            if size > _BATCH_BYTES:
                self._kept.add("meta", {"facts": part})
                part, size = {}, 0
        if part:
            self._kept.add("meta", {"facts": part})
        self._changed_facts = {}


def _taken(queue):
    """Pop what a deque holds now; what others append meanwhile waits for the next time."""
    for _ in range(len(queue)):
        try:
            yield queue.popleft()
        except IndexError:
            return
