"""Intake: callers become peers, peers become sessions, and what sessions send becomes state. All of it on one thread.

A turn takes a bounded piece of each connection and of each ring, so that none can keep the others waiting. Whatever a peer
does wrong costs that peer its connection, and nobody else anything.
"""

from __future__ import annotations

import functools
import logging
import selectors
import time
from collections.abc import Callable

import msgspec
from gpuwatch_hooks import wire

from gpuwatch.config import Hooks, Limits
from gpuwatch.intake import commands, endings, sampling
from gpuwatch.intake.admission import Admission
from gpuwatch.intake.decode import Command, Ended, HelloMessage, Message, SamplingRequest, VersionError, decode_message
from gpuwatch.intake.descriptors import DescriptorError, close_all
from gpuwatch.intake.listener import Listener
from gpuwatch.intake.peers import Peer, PeerError, Received, namespace_pid, open_pidfd
from gpuwatch.intake.rings import RingReader
from gpuwatch.intake.sessions import Session
from gpuwatch.selfstats import SelfStats
from gpuwatch.state.identity import Identity
from gpuwatch.state.records import DecodeError
from gpuwatch.state.store import RefusedError, State

log = logging.getLogger(__name__)

ACCEPTS_PER_TURN = 256
MESSAGES_PER_TURN = 16
#: A long message ends a peer's turn: copying 16 MiB takes about 5 ms.
BYTES_PER_TURN = 4 << 20
#: How long no caller is accepted after we ran out of descriptors: the listening socket would stay ready and spin the loop.
ACCEPT_PAUSE_NS = 200_000_000
MAX_SESSION_FAULTS = 3
MAX_REFUSALS_KEPT = 64

#: A process has ended, but a child of its may hold the socket and go on talking: this many turns are heard.
MAX_LAST_TURNS = 256

_REASONS: tuple[tuple[type[Exception], str], ...] = (
    (VersionError, "wire_version"),
    (DecodeError, "malformed_message"),
    (DescriptorError, "bad_descriptor"),
)
#: What the selector's data holds: called with the events. False: nothing came of it that a look at the rings must follow.
Handler = Callable[[int], bool | None]


class Intake:
    """Owns the listener, all connections and all rings; registers them with `selector`, whose data are Handlers."""

    def __init__(
        self,
        state: State,
        listener: Listener,
        selector: selectors.BaseSelector,
        stats: SelfStats,
        limits: Limits,
        hooks: Hooks,
        sampler: sampling.Sampler | None = None,
    ) -> None:
        self.sessions: dict[tuple[Identity, int], Session] = {}  # by process and ring id
        self.peers: dict[Peer, Session | None] = {}  # None: it has not said hello yet
        self._state = state
        self._listener = listener
        self._selector = selector
        self._stats = stats
        self._limits = limits
        self._hooks = hooks
        self._sampler = sampler
        self._admission = Admission(limits)
        self._no_room: dict[str, str] = {}  # token of a job that could not be recorded yet -> why
        self._buffer = bytearray(wire.MAX_MESSAGE_BYTES + 1)
        self._accept_again_ns = 0
        selector.register(listener.socket, selectors.EVENT_READ, self._accept)

    def turn(self) -> bool:
        """Look at every ring once and at what is overdue. True when a ring holds more than one turn may take."""
        now_ns = time.monotonic_ns()
        if self._accept_again_ns and now_ns >= self._accept_again_ns:
            self._accept_again_ns = 0
            self._selector.register(self._listener.socket, selectors.EVENT_READ, self._accept)
        for peer in [peer for peer, session in self.peers.items() if session is None]:
            if now_ns - peer.accepted_ns > self._limits.handshake_seconds * 1e9:
                self._turn_away(peer, "slow_handshake")
        backlog = [self._read(session, now_ns) for session in list(self.sessions.values())]
        return any(backlog)

    def patience_seconds(self, period_seconds: float) -> float:
        """When to look at the rings again: after `period_seconds`, or sooner where one fills fast."""
        return min((session.pace.period_seconds(period_seconds) for session in self.sessions.values()), default=period_seconds)

    def reconfigure(self, hooks: Hooks) -> None:
        """Tell every process what is asked of it from now on."""
        self._hooks = hooks
        for peer in [peer for peer, session in self.peers.items() if session is not None]:
            self._say(peer, {"t": "set", **self._settings()})

    def close(self) -> None:
        """Let go of every connection and ring. The runs stay open: their processes go on with the next daemon."""
        for peer in list(self.peers):
            self._drop(peer)
        for session in self.sessions.values():
            self._unwatch(session)
            session.close()
        self.sessions.clear()
        if not self._accept_again_ns:
            self._selector.unregister(self._listener.socket)
        self._listener.close()

    # ------------------------------------------------------------------------------------------------------ connections

    def _accept(self, _events: int) -> None:
        for _ in range(ACCEPTS_PER_TURN):
            try:
                connection = self._listener.accept()
                if connection is None:
                    return
                peer = Peer(connection, time.monotonic_ns())
            except OSError as error:
                self._stats.count("accept_errors", error.strerror or "unknown")
                self._selector.unregister(self._listener.socket)
                self._accept_again_ns = time.monotonic_ns() + ACCEPT_PAUSE_NS
                return
            reason = self._admission.admit_peer(peer.identity.uid)
            if reason:
                self._stats.count("peers_refused", reason)
                peer.close()
                continue
            self.peers[peer] = None
            self._selector.register(peer, selectors.EVENT_READ, functools.partial(self._ready, peer))

    def _ready(self, peer: Peer, events: int) -> bool:
        """A connection can be read or written. True when a session began or ended: the scalars of a run are no such news."""
        before = self.peers.get(peer)
        self._hear(peer, events)
        return before is None or self.peers.get(peer) is not before or before.is_ending

    def _hear(self, peer: Peer, events: int = selectors.EVENT_READ) -> bool:
        """Handle what a connection is ready for. True when it may have more to say."""
        try:
            if events & selectors.EVENT_WRITE and peer.flush():
                self._selector.modify(peer, selectors.EVENT_READ, functools.partial(self._ready, peer))
            more = self._hear_messages(peer)
            self._acknowledge(peer)
        except PeerError as error:
            self._stats.count("peers_lost", str(error))
            self._drop(peer)
        except (DecodeError, DescriptorError) as error:
            self._refuse(peer, next(reason for kind, reason in _REASONS if isinstance(error, kind)), str(error))
        except RefusedError as error:
            log.warning("no room for process %d of uid %d: %s", peer.identity.pid, peer.identity.uid, error)
            self._turn_away(peer, "no_room")
        except Exception:
            log.exception("a message of process %d could not be handled", peer.identity.pid)
            self._stats.count("faults", "message")
            self._drop(peer)
        else:
            return more
        return False

    def _hear_messages(self, peer: Peer) -> bool:
        size_bytes = 0
        for _ in range(MESSAGES_PER_TURN):
            received = peer.receive(self._buffer)
            if received is None:
                return False
            try:
                size_bytes += self._take(peer, received)
            finally:
                close_all(received.fds)
            if size_bytes > BYTES_PER_TURN:
                break
        return True

    def _take(self, peer: Peer, received: Received) -> int:
        """Handle one message; the bytes that it brought. What is left in `received.fds` is the caller's to close."""
        message: Message = decode_message(received.data)
        session = self.peers[peer]
        if session is None:
            if isinstance(message, Command) and not received.fds:
                self._say(peer, commands.obey(message, peer.identity, self.sessions.values()))
                return len(received.data)
            if isinstance(message, Ended) and not received.fds:
                self._say(peer, endings.conclude(message, peer.identity, self._state, self._no_room))
                return len(received.data)
            if isinstance(message, SamplingRequest) and not received.fds:
                self._say(peer, sampling.obey(message, peer.identity, self._sampler, self._state))
                return len(received.data)
            if not isinstance(message, HelloMessage) or len(received.fds) != 1:
                raise DecodeError("the first message is not a hello with a ring")
            self._greet(peer, message, received.fds)
            return len(received.data)
        return len(received.data) + session.hear(message, received.fds, self._state, self._admission, self._limits)

    def _greet(self, peer: Peer, message: HelloMessage, fds: list[int]) -> None:
        """Give a process that has said hello its session: the one it had, else a new one."""
        identity = peer.identity
        key = (identity, message.hello.ring_id)
        session = self.sessions.get(key)
        if session is None:
            reader = RingReader(
                fds.pop(), message.slot_count, message.slot_bytes, message.hello.ring_id, self._limits.ring_bytes
            )
            try:
                hello = msgspec.structs.replace(message.hello, ns_pid=namespace_pid(identity.pid) or message.hello.ns_pid)
                try:
                    run = self._state.open_run(hello, identity)
                except RefusedError as error:
                    self._no_room[hello.token] = str(error)
                    for forgotten in list(self._no_room)[:-MAX_REFUSALS_KEPT]:
                        del self._no_room[forgotten]
                    raise
                self._no_room.pop(hello.token, None)
                session = Session(identity, reader, run, open_pidfd(identity))
            except BaseException:
                reader.close()
                raise
            self._supersede(identity)
            self.sessions[key] = session
            if session.pidfd >= 0:
                self._selector.register(session.pidfd, selectors.EVENT_READ, functools.partial(self._process_ended, session))
            log.info("%s: process %d of uid %d connected", run.directory, identity.pid, identity.uid)
        elif session.peer is not None:
            self._drop(session.peer)
        session.peer, session.refused = peer, False
        self.peers[peer] = session
        run = session.run
        welcome = {"run": run.name, "directory": run.directory, "settings": self._settings(), "acked": run.acknowledged}
        self._say(peer, {"t": "welcome", **welcome})

    def _supersede(self, identity: Identity) -> None:
        """A process writes to one ring at a time: a new one ends the one before (after an exec, say)."""
        for (owner, _), session in self.sessions.items():
            if owner == identity and identity.pid:
                session.end()

    def _say(self, peer: Peer, message: dict[str, object]) -> None:
        try:
            peer.send(message)
        except PeerError as error:
            self._stats.count("peers_lost", str(error))
            self._drop(peer)

    def _acknowledge(self, peer: Peer) -> None:
        """Say what is durable by now; wait for the socket where it takes no more. Raises PeerError."""
        session = self.peers.get(peer)
        if session is not None:
            peer.acknowledge(session.run.acknowledged)
            if session.refused:  # the disk has failed for long: what was not taken comes again with the next connection
                raise PeerError("journal_refused")
        if peer in self.peers and not peer.flush():
            events = selectors.EVENT_READ | selectors.EVENT_WRITE
            self._selector.modify(peer, events, functools.partial(self._ready, peer))

    def _turn_away(self, peer: Peer, reason: str) -> None:
        """Close without a word: the hooks come again, and there may be room then."""
        self._stats.count("peers_refused", reason)
        self._drop(peer)

    def _refuse(self, peer: Peer, reason: str, sentence: str) -> None:
        """Tell a process that it will never be taken: its hooks go quiet."""
        self._stats.count("peers_refused", reason)
        log.warning("process %d of uid %d was refused: %s", peer.identity.pid, peer.identity.uid, sentence)
        peer.refuse(sentence)
        self._drop(peer)

    def _drop(self, peer: Peer) -> None:
        """Close a connection. Its process keeps its session, unless nothing else would tell us of its end."""
        if peer not in self.peers:
            return
        session = self.peers.pop(peer)
        self._selector.unregister(peer)
        self._admission.release_peer(peer.identity.uid)
        peer.close()
        if session is not None and session.peer is peer:
            session.peer = None
            if session.pidfd < 0:
                session.end()

    # ------------------------------------------------------------------------------------------------------------ rings

    def _read(self, session: Session, now_ns: int) -> bool:
        """One batch of a session's ring; its end, when it has come. True when more is waiting."""
        try:
            more = session.take(self._state, now_ns)
            session.faults = 0
            if session.peer is not None:
                self._acknowledge(session.peer)
        except PeerError as error:
            self._stats.count("peers_lost", str(error))
            if session.peer is not None:
                self._drop(session.peer)
            return False
        except DescriptorError as error:
            log.warning("%s: %s: it is read no more", session.run.directory, error)
            self._stats.count("rings_left", "impossible_head")
            self._finish(session)
            return False
        except Exception:
            log.exception("%s: a batch could not be taken", session.run.directory)
            self._stats.count("faults", "ring")
            session.faults += 1
            if session.faults >= MAX_SESSION_FAULTS:
                self._finish(session)
            return False
        if session.drained:
            self._finish(session)
        return more

    def _process_ended(self, session: Session, _events: int) -> None:
        """The kernel says that the process is no more: hear what it still said, then let its ring run dry."""
        self._unwatch(session)
        for _ in range(MAX_LAST_TURNS):
            if session.peer is None or not self._hear(session.peer):
                break
        if session.peer is not None:
            self._drop(session.peer)
        session.end()

    def _finish(self, session: Session) -> None:
        self.sessions.pop((session.identity, session.reader.ring_id), None)
        self._unwatch(session)
        if session.peer is not None:
            self._drop(session.peer)
        session.close()
        self._admission.keep_only({other.run.directory for other in self.sessions.values()})
        self._state.process_gone(session.run)
        log.info("%s: %s at step %d", session.run.directory, session.run.status, session.run.last_step)

    def _unwatch(self, session: Session) -> None:
        if session.pidfd >= 0 and session.pidfd in self._selector.get_map():
            self._selector.unregister(session.pidfd)

    def _settings(self) -> dict[str, object]:
        hooks = self._hooks
        return {name: getattr(hooks, name) for name in ("every", "histograms", "overhead_budget", "kernel")}
