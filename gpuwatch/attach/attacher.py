"""One attach or detach from beginning to end: look, choose a way in, put the text there, read what it reports."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import replace

from gpuwatch.attach import (
    connected,
    doorway,
    gdb,
    injector,
    machines,
    payload,
    placed_file,
    preflight,
    reach,
    remote_debug,
    visit,
)
from gpuwatch.attach.entry import InjectError
from gpuwatch.attach.loader import LEFT_AT, REPORT_BYTES, REPORTED
from gpuwatch.attach.payload import Place
from gpuwatch.attach.process import Process, read_process, seen_from, waiting_in

METHODS = ("auto", "socket", "ptrace", "remote-debug", "gdb")
_POLL_SECONDS = 0.001
MakeText = Callable[[Place], str]
#: Answers that only mean "not at this moment", and how long until it is worth asking again: torch is being imported, the main
#: thread was in one of our own hooks or in a lock of the import system, our thread still delivers.
_AGAIN_SECONDS = {"importing": 0.25, "inside": 0.002, "locked": 0.005, "leaving": 0.02, "loading": 0.02, "stepping": 0.002}
#: What has been filed is still carried out for so long when the command no longer waits for it.
QUEUED_SECONDS = 600.0
#: A main thread that has not come by for so long is looked at: where it sleeps harmlessly, it is sent to the interpreter.
_VISIT_AFTER_SECONDS, _BETWEEN_VISITS_SECONDS, _MOST_VISITS = 0.1, 0.1, 50
#: What an attach may set, as the hooks name it.
ADJUSTABLE = ("every", "histograms", "overhead_budget", "detach_after_seconds")
GOOD_ANSWERS = ("installed", "already", "detached", "absent", "possible")


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one process. `answer`: installed, already, detached, absent, possible, queued, refused or failed."""

    pid: int
    title: str
    answer: str
    method: str = ""
    sentence: str = ""
    fix: str = ""
    stopped_microseconds: float = 0.0
    seconds: float = 0.0

    @property
    def good(self) -> bool:
        return self.answer in GOOD_ANSWERS


def look(pid: int) -> tuple[Process | None, Outcome | None]:
    """The process, and the first thing that speaks against going in."""
    try:
        process = read_process(pid)
    except ProcessLookupError as error:
        return None, Outcome(
            pid=pid, title="", answer="refused", sentence=str(error), fix="`gpuwatch ps` lists what trains here"
        )
    for finding in preflight.check(process):
        if finding.fatal:
            refusal = Outcome(pid=pid, title=process.title, answer="refused", sentence=finding.sentence, fix=finding.fix)
            return process, refusal
    return process, None


def choose(process: Process, method: str) -> str:
    """The way in: the interpreter's own where it has one that we know, else the injector, else gdb."""
    if method != "auto":
        return method
    if process.python in remote_debug.VERSIONS:
        return "remote-debug"
    return "ptrace" if machines.here() else "gdb"


def _no_such_way(process: Process, method: str) -> Outcome | None:
    if method != "remote-debug" or process.python in remote_debug.VERSIONS:
        return None
    version = ".".join(map(str, process.python or ()))
    sentence = f"Python {version} has no remote debugging interface that we know (3.14 has)"
    return Outcome(pid=process.pid, title=process.title, answer="refused", sentence=sentence, fix="use another --method")


def _out_of_reach(process: Process, verb: str, options: dict[str, Any]) -> Outcome | None:
    path = options.get("socket") or ""
    if verb != "begin" or preflight.socket_is_hidden(process, path):  # through a doorway, no folder above is passed
        return None
    closed = reach.closed_to(process, path)
    if not closed:
        return None
    return Outcome(
        pid=process.pid,
        title=process.title,
        answer="refused",
        sentence=f"its user (uid {process.uid}) may not pass {closed}, so the hooks could not reach the daemon",
        fix="attach as that user, or to a daemon for all users: `gpuwatch daemon` as root listens in /run/gpuwatch",
    )


def apply(
    pid: int,
    verb: str,
    options: dict[str, Any],
    *,
    method: str = "auto",
    timeout_seconds: float = 10.0,
    daemon: Path | None = None,
) -> Outcome:
    """Attach (`verb` begin) or detach (end). Never raises: the outcome has the sentence.

    A process whose hooks are connected to `daemon` is told over its socket; every other is entered.
    """
    began = time.monotonic()
    if method in ("auto", "socket"):
        told = _by_socket(pid, verb, options, daemon, timeout_seconds)
        if told.good or method == "socket":
            return replace(told, seconds=time.monotonic() - began)
    process, refusal = look(pid)
    if process is not None and refusal is None:
        refusal = _no_such_way(process, method) or _out_of_reach(process, verb, options)
    if process is None or refusal is not None:
        assert refusal is not None
        return refusal
    way = choose(process, method)
    outcome = Outcome(pid=pid, title=process.title, answer="failed", method=way)
    try:
        with _way_to_daemon(process, verb, options) as reaching:
            answer, stopped = _enter(process, way, verb, reaching, timeout_seconds)
    except InjectError as error:
        return replace(outcome, sentence=str(error), fix="try again")
    except PermissionError:
        sentence = f"the kernel does not let you trace process {pid}"
        right = "run as its owner or with sudo; in" if os.geteuid() else "in"
        fix = f"{right} a container add the capability SYS_PTRACE; or start it under `gpuwatch run`, which needs no tracing"
        return replace(outcome, answer="refused", sentence=sentence, fix=fix)
    except OSError as error:
        sentence = f"process {pid} has ended" if preflight.has_ended(pid) else f"process {pid}: {error.strerror}"
        return replace(outcome, sentence=sentence, fix="`gpuwatch ps` lists what trains here")
    return _told(answer, replace(outcome, stopped_microseconds=stopped, seconds=time.monotonic() - began))


def _enter(process: Process, way: str, verb: str, options: dict[str, Any], timeout_seconds: float) -> tuple[str, float]:
    """The target's last answer, and the longest that it was stopped for, in microseconds. Raises InjectError, OSError."""
    deadline = time.monotonic() + timeout_seconds
    modules = payload.compiled(process)
    blob = payload.pack(modules) if verb == "begin" else b""

    def text(place: Place) -> str:
        return payload.build(modules, verb, options, process, place, max(timeout_seconds, QUEUED_SECONDS))

    go = {"remote-debug": _by_remote_debugging, "gdb": _by_gdb}.get(way, _by_injector)
    leaving = False
    answer, stopped = go(process, text, blob, timeout_seconds)
    while (pause := _AGAIN_SECONDS.get(answer.partition(":")[0])) and time.monotonic() + pause < deadline:
        time.sleep(pause)
        leaving = leaving or answer in ("leaving", "inside")
        answer, again = go(process, text, blob, deadline - time.monotonic())
        stopped = max(stopped, again)
    return "detached" if leaving and answer == "absent" else answer, stopped


def _by_socket(pid: int, verb: str, options: dict[str, Any], daemon: Path | None, timeout_seconds: float) -> Outcome:
    """Method 0: the hooks are in it already, and their daemon passes the verb on. No tracing, no stop."""
    outcome = Outcome(pid=pid, title=_title(pid), answer="refused", method="socket")
    try:
        if daemon is None:
            raise ConnectionRefusedError
        if verb == "end":
            reason, answer = connected.detach(daemon, pid, timeout_seconds), "detached"
        else:
            settings = {name: options[name] for name in ADJUSTABLE if options.get(name) is not None}
            reason, answer = connected.ask(daemon, "set", pid, settings), "already"
    except (OSError, ValueError):
        return replace(outcome, sentence="no daemon answers", fix="start one with `gpuwatch daemon`, or use another --method")
    if reason:
        return replace(outcome, sentence=reason, fix="use another --method")
    return replace(outcome, answer=answer)


def _title(pid: int) -> str:
    try:
        return read_process(pid).title
    except (OSError, ValueError, KeyError):
        return ""


@contextmanager
def _way_to_daemon(process: Process, verb: str, options: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The options with the daemon's socket as the target names it, or with a doorway to it where it cannot."""
    path = options.get("socket") or ""
    if verb == "begin" and preflight.socket_is_hidden(process, path):
        with doorway.held_open(process, os.path.dirname(path)) as door:
            yield options | {"doorway": door}
    else:
        yield options | ({"socket": seen_from(process.pid, path)} if path else {})


def _by_remote_debugging(process: Process, make_text: MakeText, blob: bytes, timeout_seconds: float) -> tuple[str, float]:
    def script(report: int, path: str) -> bytes:
        return make_text(Place(report, path or None, None)).encode()

    report, stopped = remote_debug.request(process, script, blob)
    answer, stood = _await_report(process, report, timeout_seconds)
    return answer or _queued(process, ""), max(stopped, stood)


def _by_injector(process: Process, make_text: MakeText, blob: bytes, timeout_seconds: float) -> tuple[str, float]:
    def text(area: int, area_bytes: int) -> str:
        return make_text(Place(area, (area + injector.BLOB_AT, len(blob)) if blob else None, (area, area_bytes)))

    injection = injector.inject(process.pid, text, process.start_ticks, blob=blob)
    stopped = injection.stopped_microseconds
    answer, stood = _await_report(process, injection.area, timeout_seconds)
    stopped = max(stopped, stood)
    answer = answer or _left(process, injection.area)
    if answer is None:
        return _queued(process, injection.found_in), stopped
    if answer.startswith("importing"):
        return f"queued: it is still {answer.replace(': ', ' ')}", stopped
    with suppress(InjectError, OSError):  # what cannot be unmapped now are 300 KB that nobody reads
        stopped = max(stopped, injector.release(process.pid, injection.area, injection.area_bytes))
    return answer, stopped


def _by_gdb(process: Process, make_text: MakeText, blob: bytes, timeout_seconds: float) -> tuple[str, float]:
    deadline = time.monotonic() + timeout_seconds

    def script(report: str, path: str) -> bytes:
        return make_text(Place(report, path or None, None)).encode()

    report, stopped, ran = gdb.request(process, script, blob, timeout_seconds)
    path = Path(placed_file.outside(process, report))
    try:
        while ran and time.monotonic() < deadline:
            if answer := path.read_text(encoding="utf-8", errors="replace"):
                return answer, stopped
            time.sleep(_POLL_SECONDS)
    finally:
        path.unlink(missing_ok=True)
    return _queued(process, "") if ran else "busy", stopped


def _left(process: Process, area: int) -> str | None:
    """Note in the area that nobody waits any more: it is unmapped by whoever uses it last. An answer that came meanwhile, or
    what it has been waiting for."""
    memory = os.open(f"/proc/{process.pid}/mem", os.O_RDWR)
    try:
        os.pwrite(memory, b"\1", area + LEFT_AT)
        waits_for = os.pread(memory, REPORT_BYTES, area)[8:].split(b"\0", 1)[0].decode(errors="replace")
        return _read_report(process, memory, area) or (waits_for if waits_for.startswith("importing") else None)
    finally:
        os.close(memory)


def _await_report(process: Process, address: int, timeout_seconds: float) -> tuple[str | None, float]:
    """What the target has reported at `address`, or None after the timeout; microseconds for which a visit has held it."""
    began = time.monotonic()
    look_at, visits, stopped = began + _VISIT_AFTER_SECONDS, 0, 0.0
    memory = os.open(f"/proc/{process.pid}/mem", os.O_RDONLY)
    try:
        while (now := time.monotonic()) < began + timeout_seconds:
            answer = _read_report(process, memory, address)
            if answer is not None:
                return answer, stopped
            if now >= look_at and visits < _MOST_VISITS:
                held = _visited(process)
                visits, stopped = visits + (held > 0), max(stopped, held)
                look_at = time.monotonic() + _BETWEEN_VISITS_SECONDS
            time.sleep(_POLL_SECONDS)
    finally:
        os.close(memory)
    return None, stopped


def _visited(process: Process) -> float:
    """Send a main thread that sleeps to the interpreter; microseconds that it was held, 0 when it is not sent."""
    with suppress(InjectError, OSError):
        asleep = visit.may_visit(process.pid)
        if asleep is not None:
            return visit.visit(process.pid, process.start_ticks, asleep)
    return 0.0


def _read_report(process: Process, memory: int, address: int) -> str | None:
    raw = os.pread(memory, REPORT_BYTES, address)
    if not raw:
        raise InjectError(f"process {process.pid} ended")
    return raw[8:].split(b"\0", 1)[0].decode(errors="replace") if raw[0] == REPORTED else None


def _queued(process: Process, found_in: str) -> str:
    with suppress(OSError, ValueError, KeyError):
        if read_process(process.pid).state == "T":
            return f"queued: the process is stopped; kill -CONT {process.pid} lets it go on"
    asleep = visit.asleep(process.pid)
    where = waiting_in(process.pid) if asleep is not None else ""
    place = f"sleeps in {where}" if where else f"runs code of {found_in}" if found_in else "is busy"
    return f"queued: the main thread has not come back to Python (it {place})"


#: What the target may answer instead, and what its user is told: sentence (the rest of the answer in place of {}), fix.
_EXPLAINED = {
    "queued": ("{}", f"done as soon as it does, within {QUEUED_SECONDS / 60:.0f} minutes; --wait waits for that"),
    "busy": ("its main thread has not come back to Python, and gdb does not wait", "try again with a longer --timeout"),
    "expired": ("the main thread came to it too late", "try again with --wait"),
    "loading": ("an attach before this one is still under way", "wait for that one"),
    "importing": ("it is still importing {}", "try again with --wait"),
    "locked": ("it was in the middle of an import each time", "try again with --wait"),
    "stepping": ("it was in the middle of torch's step hooks each time", "try again with --wait"),
    "elsewhere": ("another daemon records it already (it listens at {})", "look there, or `gpuwatch detach {pid}` first"),
    "inside": ("the hooks are not out yet", "run the command again"),
    "leaving": ("the hooks are not out yet", "run the command again"),
    "refused": ("the kernel refuses it {}", "allow that in its sandbox (seccomp, systemd), or raise its limits"),
    "no_torch": ("torch is not loaded in it", "use --wait"),
    "failed": ("{}", "the job goes on without hooks; please report this"),
}


def _told(answer: str, outcome: Outcome) -> Outcome:
    word, _, rest = answer.partition(": ")
    if word in GOOD_ANSWERS:
        return replace(outcome, answer=word)
    sentence, fix = _EXPLAINED.get(word, (answer, "please report this"))
    answered = {"queued": "queued", "refused": "refused", "elsewhere": "refused"}.get(word, "failed")
    return replace(outcome, answer=answered, sentence=sentence.format(rest), fix=fix.format(pid=outcome.pid))
