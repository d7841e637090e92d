"""What waits for the daemon: handed over by any thread with one append, numbered, encoded and kept until acknowledged.

The near side (`put_*`) is for the training thread: no lock, no system call, bounded, what does not fit is dropped and
counted. The far side belongs to the control thread alone.
"""

import collections
import itertools
import json
import time

from . import wire

#: Scalars that may wait for the control thread; the oldest make room. It takes them a few times a second.
MAX_WAITING_SCALARS = 8192
MAX_WAITING_MEDIA = 32
MAX_WAITING_MEDIA_BYTES = 64 << 20
#: Unacknowledged messages while no daemon answers: about 100,000 scalars, or the pictures below.
MAX_KEPT_MESSAGES = 2048
MAX_KEPT_BYTES = 8 << 20
MAX_KEPT_MEDIA_BYTES = 64 << 20
_BATCH_BYTES = 48 * 1024
_ROW_BYTES = 96  # of a scalar's row without its tag, and of a name with its count: what JSON needs at most
MAX_FACTS = 256
MAX_FACT_CHARS = 1024


class Message:
    """One numbered control message: `payload` is its JSON; `data` (bytes or None) goes along in a sealed memfd."""

    __slots__ = ("data", "kind", "n", "payload")

    def __init__(self, n, kind, payload, data=None):
        self.n = n
        self.kind = kind
        self.payload = payload
        self.data = data


class Outbox:
    """Bounded hand-over to the control thread."""

    def __init__(self):
        self._serial = itertools.count(1)
        self._scalars = collections.deque(maxlen=MAX_WAITING_SCALARS)
        self._media = collections.deque()
        self._other = collections.deque()
        self._refused_media = collections.deque()
        # From here on: the control thread's.
        self._taken = self._highest = 0
        self._next_n = 1
        self._kept = collections.OrderedDict()
        self._kept_bytes = self._kept_media_bytes = 0
        self._tables = {}
        self._facts = {}
        self._changed_facts = {}
        self.dropped = {}
        self._told = {}

    # ------------------------------------------------------------------------------------------------- any thread
    def put_scalar(self, tag, step, value):
        self._scalars.append((next(self._serial), tag, step, value, time.monotonic_ns()))

    def put_names(self, table, version, first, names, numels):
        self._other.append(("names", table, version, first, tuple(names), tuple(numels)))

    def put_facts(self, facts):
        self._other.append(("facts", dict(facts)))

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
        self._refused_media.append(None)
        return False

    def is_idle(self):
        """Whether nothing waits to be taken."""
        return not (self._scalars or self._media or self._other)

    # --------------------------------------------------------------------------------------------- control thread
    def collect(self):
        """Number and encode everything that waits. True when there was something."""
        if self.is_idle() and not self._refused_media:
            return False
        for item in _taken(self._other):
            if item[0] == "facts":
                self._take_facts(item[1])
            else:
                self._take_names(*item[1:])
        for item in _taken(self._media):
            self._take_media(*item)
        self._take_scalars()  # behind the media, whose data may log how many values were not finite
        while self._refused_media:
            self._refused_media.pop()
            self._drop("media_waiting")
        self._tell_facts()
        return True

    def unacknowledged(self, after):
        """The messages numbered above `after`, in order."""
        return [message for n, message in list(self._kept.items()) if n > after]

    def acknowledge(self, n):
        """Forget the messages up to and including number `n`."""
        while self._kept:
            first = next(iter(self._kept))
            if first > n:
                break
            self._forget(first)

    def repeat_tables(self):
        """Give the name tables and facts new numbers: this daemon does not know what the last one acknowledged."""
        queued = {message.n: message.kind for message in self._kept.values()}
        for n in [n for n, kind in queued.items() if kind in ("names", "meta")]:
            self._forget(n)
        for table, (version, chunks) in self._tables.items():
            for first in sorted(chunks):
                self._send_names(table, version, first, *chunks[first])
        self._changed_facts = dict(self._facts)
        self._tell_facts()

    # ------------------------------------------------------------------------------------------------------ inside
    def _drop(self, reason, count=1):
        if count:
            self.dropped[reason] = self.dropped.get(reason, 0) + count

    def _keep(self, kind, fields, data=None):
        n = self._next_n
        body = {"t": kind, "n": n}
        body.update(fields)
        payload = json.dumps(body, separators=(",", ":")).encode()
        if len(payload) > wire.MAX_MESSAGE_BYTES:
            self._drop(kind + "_too_large")
            return
        self._next_n = n + 1
        self._kept[n] = Message(n, kind, payload, data)
        self._kept_bytes += len(payload)
        self._kept_media_bytes += len(data) if data else 0
        self._make_room()

    def _make_room(self):
        """Let the oldest scalars and media go; names and facts stay, they are bounded by themselves."""
        crowded = len(self._kept) > MAX_KEPT_MESSAGES or self._kept_bytes > MAX_KEPT_BYTES
        if not crowded and self._kept_media_bytes <= MAX_KEPT_MEDIA_BYTES:
            return
        for n, message in list(self._kept.items()):
            if message.kind == "media" or (crowded and message.kind == "scalars"):
                self._drop(message.kind + "_kept")
                self._forget(n)
                crowded = len(self._kept) > MAX_KEPT_MESSAGES or self._kept_bytes > MAX_KEPT_BYTES
                if not crowded and self._kept_media_bytes <= MAX_KEPT_MEDIA_BYTES:
                    return

    def _forget(self, n):
        message = self._kept.pop(n)
        self._kept_bytes -= len(message.payload)
        self._kept_media_bytes -= len(message.data) if message.data else 0

    def _take_scalars(self):
        rows, size = [], 0
        for serial, tag, step, value, now in _taken(self._scalars):
            self._taken += 1
            self._highest = max(self._highest, serial)
            text = str(tag)[: wire.MAX_NAME_CHARS]
            rows.append([text, int(step), float(value), now])
            size += _ROW_BYTES + len(json.dumps(text))
            if size > _BATCH_BYTES:
                self._keep("scalars", {"rows": rows})
                rows, size = [], 0
        if rows:
            self._keep("scalars", {"rows": rows})
        lost = self._highest - self._taken - self.dropped.get("scalars_waiting", 0)
        self._drop("scalars_waiting", max(0, lost))

    def _take_names(self, table, version, first, names, numels):
        known_version, chunks = self._tables.get(table, (None, {}))
        if known_version != version:
            chunks = {}
            self._tables[table] = (version, chunks)
        names = tuple(str(name)[: wire.MAX_NAME_CHARS] for name in names[: wire.MAX_TENSORS])
        chunks[first] = (names, tuple(int(count) for count in numels[: len(names)]))
        self._send_names(table, version, first, *chunks[first])

    def _send_names(self, table, version, first, names, numels):
        start, size = 0, 0
        for index, name in enumerate(names):
            size += _ROW_BYTES + len(json.dumps(name))
            if size > _BATCH_BYTES or index == len(names) - 1:
                stop = index + 1
                part = {"table": table, "version": version, "first": first + start, "names": names[start:stop]}
                part["numels"] = numels[start:stop]
                self._keep("names", part)
                start, size = stop, 0

    def _take_media(self, kind, tag, step, shape, data, now, _held_bytes):
        try:
            data = bytes(data() if callable(data) else data)
        except Exception:
            self._drop("media_fault")
            return
        if len(data) > wire.MAX_MEDIA_BYTES:
            self._drop("media_too_large")
            return
        head = {"kind": kind, "tag": str(tag)[: wire.MAX_NAME_CHARS], "step": int(step), "shape": [int(s) for s in shape]}
        self._keep("media", dict(head, bytes=len(data), monotonic_ns=now), data)

    def _take_facts(self, facts):
        for raw_name, raw_value in facts.items():
            name = str(raw_name)[: wire.MAX_NAME_CHARS]
            value = raw_value if isinstance(raw_value, (bool, int, float)) else str(raw_value)[:MAX_FACT_CHARS]
            if name in self._facts or len(self._facts) < MAX_FACTS:
                self._facts[name] = self._changed_facts[name] = value

    def _tell_facts(self):
        if self.dropped != self._told:
            self._told = dict(self.dropped)
            self._take_facts({"outbox_dropped": sum(self.dropped.values())})
            self._take_facts({"outbox_dropped_" + reason: count for reason, count in self.dropped.items()})
        part, size = {}, 0
        for name, value in self._changed_facts.items():
            part[name] = value
            size += len(json.dumps(name)) + len(json.dumps(value)) + 2
            if size > _BATCH_BYTES:
                self._keep("meta", {"facts": part})
                part, size = {}, 0
        if part:
            self._keep("meta", {"facts": part})
        self._changed_facts = {}


def _taken(queue):
    """Pop what a deque holds now; what others append meanwhile waits for the next time."""
    for _ in range(len(queue)):
        try:
            yield queue.popleft()
        except IndexError:
            return
