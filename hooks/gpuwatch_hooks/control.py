"""The one background thread of the hooks: it talks to the daemon so that the training thread never has to.

It connects, shows who we are, passes the ring's descriptor, delivers the outbox, and hears settings and commands: fixed verbs,
never code. It sleeps in poll and wakes a few times a second at most, because every wake-up asks the training thread for
the GIL; the training thread reaches it through deques only and shares no lock with it.
"""

import collections
import contextlib
import json
import os
import select
import signal
import socket
import threading
import time

from . import endpoint, identity, media_file, notices, wire

FIRST_DELAY_SECONDS = 0.1
LONGEST_DELAY_SECONDS = 10.0
#: Between looks at the outbox: after it had something, after it had nothing for a while, and while nobody listens.
BUSY_POLL_SECONDS = 0.2
IDLE_POLL_SECONDS = 1.0
ABSENT_POLL_SECONDS = 2.0
IDLE_AFTER_SECONDS = 3.0
FAREWELL_SECONDS = 2.0


class Control:
    """Connection to the daemon. `session` gives settings, identity, ring and outbox, and hears `adjust`, `leave`, `release`."""

    def __init__(self, session):
        self._session = session
        self._outbox = session.outbox
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_write, False)
        os.set_blocking(self._wake_read, False)
        self._connection = None
        self._stop_by = None  # monotonic seconds: be gone by then
        self._wake_lock = threading.Lock()  # a number that was closed may be somebody's file by now
        self._attempted = threading.Event()
        self._reached = False
        self._absent_since = time.monotonic()
        self._acknowledged = self._last_queued = 0
        self._unsent = collections.deque()
        self.welcomes = 0
        self.errands = collections.deque()  # callables of the session's, each run once on the thread
        self._thread = threading.Thread(target=self._run, name="gpuwatch-control", daemon=True)

    def start(self):
        """Start the thread. Raises RuntimeError where the process may have no more threads."""
        self._thread.start()

    def ask_to_stop(self):
        """Have the thread deliver what waits, say goodbye and end, within FAREWELL_SECONDS; returns at once."""
        if self._stop_by is None:
            self._stop_by = time.monotonic() + FAREWELL_SECONDS
        self._wake()

    def is_alive(self):
        """Whether the thread still runs."""
        return self._thread.is_alive()

    def is_connected(self):
        """Whether a daemon listens at the other end."""
        return self._connection is not None

    def stop(self, patient=False):
        """Deliver what waits, say goodbye and end, within FAREWELL_SECONDS.

        Where no daemon was ever reached this does not wait for the thread's end, unless `patient`.
        """
        self.ask_to_stop()
        if self._thread is threading.current_thread():
            return
        self._attempted.wait(FAREWELL_SECONDS)
        if (self._reached or patient) and self._thread.ident is not None:  # None: it was to be started by another thread
            self._thread.join(FAREWELL_SECONDS)

    def abandon(self):
        """In a forked child, where the thread does not exist: close the copies of its descriptors, say nothing to anybody."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
        self._wake_lock = threading.Lock()  # the other one may have been held at the fork, by a thread that is not here
        self._close_wake()

    def deliver_here(self):
        """At interpreter exit, where no thread may begin any more: one connection on this thread, within FAREWELL_SECONDS."""
        self._stop_by = time.monotonic() + FAREWELL_SECONDS
        try:
            self._converse()
        except OSError:
            self._say_absent()
        self._hang_up()
        self._close_wake()

    def _say_absent(self):
        if self._session.announces_absence and not self._reached:
            notices.say_once("no daemon answers (start one with `gpuwatch daemon`, or this program under `gpuwatch run`)")

    # ---------------------------------------------------------------------------------------------------- the thread
    def _run(self):
        # A signal sent to the process must interrupt the user's own call in the main thread, not this poll.
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        delay = FIRST_DELAY_SECONDS
        while True:
            welcomes = self.welcomes
            try:
                self._converse()
            except endpoint.UntrustedError as refusal:
                notices.say_once("%s; nothing is sent" % refusal)
            except OSError:  # absent, full, or gone in mid-conversation: the same answer
                self._say_absent()
            except Exception as error:
                notices.say_once("talking to the daemon failed (%s: %s)" % (type(error).__name__, error))
            self._hang_up()
            self._attempted.set()
            if self._stop_by is not None:
                break
            if self._is_forsaken():
                self._session.leave("detached")
                break
            delay = FIRST_DELAY_SECONDS if self.welcomes > welcomes else min(2 * delay, LONGEST_DELAY_SECONDS)
            if not self._pause(delay):
                break
        self._close_wake()
        self._session.release()
        if self._session.renewable and self._session.at_end is not None:
            self._session.at_end()

    def _is_forsaken(self):
        """Whether we were put into this job by an attach and nobody has listened for so long that nobody will."""
        patience = self._session.settings.detach_after_seconds
        return self._session.attached and 0.0 < patience <= time.monotonic() - self._absent_since

    def _pause(self, seconds):
        """Wait before the next attempt, numbering what the job hands over meanwhile. False when it is time to go."""
        until = time.monotonic() + seconds
        while self._stop_by is None:
            left = until - time.monotonic()
            if left <= 0:
                return True
            self._poll(min(left, ABSENT_POLL_SECONDS))
            self._run_errands()
            self._outbox.collect()
        return self._reached and time.monotonic() < self._stop_by  # one last try to deliver

    def _converse(self):
        """One connection from hello to its end. Returns when it is time to go; raises OSError when the daemon went."""
        session = self._session
        self._connection = connection = endpoint.connect(session.settings.socket)
        self._reached = True
        self._attempted.set()
        who = identity.hello(session)
        socket.send_fds(connection, [json.dumps(who).encode()], [session.ring.fd])
        welcomed = False
        busy_at = time.monotonic()
        while True:
            self._run_errands()
            now = time.monotonic()
            if self._outbox.collect():
                busy_at = now
            if welcomed:
                if not self._unsent:
                    self._outbox.seal()
                    self._refill()
                self._send()
            if self._stop_by is not None and ((welcomed and self._outbox.is_delivered()) or now >= self._stop_by):
                self._say_goodbye()
                return
            self._poll(self._patience(now, busy_at))
            for message in self._received():
                welcomed = self._hear(message) or welcomed

    def _run_errands(self):
        while self.errands and self._stop_by is None:
            try:
                self.errands.popleft()()
            except Exception as error:
                notices.say_once("an errand of the hooks failed (%s: %s)" % (type(error).__name__, error))

    def _patience(self, now, busy_at):
        wait = BUSY_POLL_SECONDS if now - busy_at < IDLE_AFTER_SECONDS else IDLE_POLL_SECONDS
        return wait if self._stop_by is None else max(0.0, min(wait, self._stop_by - now))

    def _poll(self, seconds):
        poller = select.poll()
        poller.register(self._wake_read, select.POLLIN)
        if self._connection is not None:
            poller.register(self._connection, select.POLLIN | (select.POLLOUT if self._unsent else 0))
        for fd, _ in poller.poll(seconds * 1000):
            if fd == self._wake_read:
                os.read(fd, 64)

    def _received(self):
        """Decoded messages that have arrived. Raises ConnectionResetError at the end of the stream."""
        while True:
            try:
                raw = self._connection.recv(wire.MAX_MESSAGE_BYTES)
            except BlockingIOError:
                return
            if not raw:
                raise ConnectionResetError("the daemon closed the connection")
            try:
                message = json.loads(raw)
            except ValueError:
                continue
            if isinstance(message, dict):
                yield message

    def _hear(self, message):
        """Act on one verb of the daemon. True for a welcome. Verbs that we do not know are a newer daemon's: ignored."""
        verb = message.get("t")
        if verb == "welcome":
            self._welcomed(message)
            return True
        if verb == "ack" and isinstance(message.get("n"), int):
            self._acknowledged = max(self._acknowledged, message["n"])
            self._outbox.acknowledge(message["n"])
        elif verb == "set":
            self._session.adjust(message, explicit=True)
        elif verb == "amp_probe":
            self._session.probe_amp(message)
        elif verb in ("trace", "snapshot"):
            self._session.serve(message)
        elif verb == "detach":
            self._session.leave("detached")
            self.stop()
        elif verb == "refuse":
            notices.say_once("the daemon refused this process: %s" % str(message.get("reason", ""))[:200])
            self._session.leave(None)
            self._stop_by = time.monotonic()
            raise ConnectionAbortedError("refused")
        return False

    def _welcomed(self, message):
        self.welcomes += 1
        known = message.get("acked")
        known = known if isinstance(known, int) else 0
        if known < self._acknowledged:
            # Another daemon, or one whose journal is gone: tell it what the last one had acknowledged.
            self._outbox.repeat_tables()
        self._acknowledged = known
        self._outbox.acknowledge(known)
        self._unsent.clear()
        self._last_queued = known
        if isinstance(message.get("settings"), dict):
            self._session.adjust(message["settings"], explicit=False)

    def _refill(self):
        for message in self._outbox.unacknowledged(self._last_queued):
            self._unsent.append(message)
            self._last_queued = message.n

    def _send(self):
        """Send until the socket is full."""
        while self._unsent:
            message = self._unsent[0]
            try:
                if message.data is None:
                    self._connection.send(message.payload)
                else:
                    with media_file.sealed(message.data) as fd:
                        socket.send_fds(self._connection, [message.payload], [fd])
            except BlockingIOError:
                return
            self._unsent.popleft()

    def _say_goodbye(self):
        self._connection.send(json.dumps({"t": "bye"}).encode())

    def _hang_up(self):
        connection, self._connection = self._connection, None
        self._unsent.clear()
        if connection is not None:
            self._absent_since = time.monotonic()
            connection.close()

    def _wake(self):
        with self._wake_lock:
            if self._wake_write is not None:
                with contextlib.suppress(BlockingIOError):  # full: it will wake
                    os.write(self._wake_write, b"w")

    def _close_wake(self):
        with self._wake_lock:
            pair = (self._wake_read, self._wake_write)
            self._wake_read = self._wake_write = None
        for fd in pair:
            if fd is not None:
                os.close(fd)
