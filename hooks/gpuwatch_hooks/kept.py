"""Messages for the daemon, numbered and kept until it has acknowledged them (they are in its journal then).

Used by the control thread alone. Bounded: where no daemon acknowledges, the oldest scalars and media go, counted; names and
facts stay, because they are few and everything else is unreadable without them.
"""

import collections
import json

from . import wire

MAX_MESSAGES = 2048
MAX_BYTES = 8 << 20
MAX_MEDIA_BYTES = 64 << 20


class Message:
    """A control message: `payload` is its JSON; `data` (bytes or None) goes along in a sealed memfd; `about` is its table."""

    __slots__ = ("about", "data", "kind", "n", "payload")

    def __init__(self, n, kind, payload, data, about):
        self.n = n
        self.kind = kind
        self.payload = payload
        self.data = data
        self.about = about


class Kept:
    """Unacknowledged messages in the order of their numbers; `drop(reason)` hears of each one that had to go."""

    def __init__(self, drop):
        self._drop = drop
        self._messages = collections.OrderedDict()
        self._next_n = 1
        self._bytes = 0
        self.media_bytes = 0

    def __len__(self):
        return len(self._messages)

    def add(self, kind, fields, data=None, about=None):
        """Number and encode a message of `kind` with `fields`; one over the wire's limit is dropped."""
        n = self._next_n
        payload = json.dumps(dict(fields, t=kind, n=n), separators=(",", ":")).encode()
        if len(payload) > wire.MAX_MESSAGE_BYTES:
            self._drop(kind + "_too_large")
            return
        self._next_n = n + 1
        self._messages[n] = Message(n, kind, payload, data, about)
        self._bytes += len(payload)
        self.media_bytes += len(data or b"")
        self._make_room()

    def after(self, n):
        """The messages with a number above `n`."""
        return [message for number, message in self._messages.items() if number > n]

    def acknowledge(self, n):
        """Forget the messages up to and including number `n`."""
        while self._messages:
            first = next(iter(self._messages))
            if first > n:
                break
            self._forget(first)

    def has(self, kind):
        """Whether a message of this kind still waits for its acknowledgement."""
        return any(message.kind == kind for message in self._messages.values())

    def forget_if(self, condition):
        """Forget, uncounted, the messages for which `condition(message)` holds: newer ones say the same."""
        for n in [n for n, message in self._messages.items() if condition(message)]:
            self._forget(n)

    def _forget(self, n):
        message = self._messages.pop(n)
        self._bytes -= len(message.payload)
        self.media_bytes -= len(message.data or b"")

    def _make_room(self):
        for n, message in list(self._messages.items()):
            crowded = len(self._messages) > MAX_MESSAGES or self._bytes > MAX_BYTES
            if not crowded and self.media_bytes <= MAX_MEDIA_BYTES:
                return
            if message.kind == "media" or (crowded and message.kind == "scalars"):
                self._drop(message.kind + "_kept")
                self._forget(n)
