"""What `gpuwatch run` tells of its command's end, and what it hears back, over a real socket."""

import json
import os
import shutil
import socket

import msgspec
import pytest
from gpuwatch_hooks import wire

from gpuwatch.intake import endings
from gpuwatch.intake.decode import Ended, decode_message
from gpuwatch.state import summary
from gpuwatch.state.identity import Hello, Identity
from gpuwatch.state.records import DecodeError

TOKEN = "0123456789abcdef"


@pytest.fixture
def ended(desk, client):
    """ended(status) says how this process ended, as its `gpuwatch run`; the reply."""

    def say(status, **changes):
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
            connection.connect(str(client.path))
            connection.settimeout(5)
            message = {"t": "ended", "token": TOKEN, "pid": os.getpid(), "status": status, **changes}
            connection.send(json.dumps(message).encode())
            desk.pump()
            return json.loads(connection.recv(1 << 16))

    return say


def train(desk, client, *, reason=None, steps=3):
    client.connect(token=TOKEN)
    desk.pump()
    for step in range(1, steps + 1):
        client.step(step)
    if reason is not None:
        client.ring.write(wire.KIND_END, wire.END_HEAD.pack(steps, wire.END_REASONS.index(reason)))
    desk.pump()
    (run,) = desk.state.runs.values()
    return run


def gone(desk, run):
    """The kernel would say so once this very process had ended."""
    for session in list(desk.intake.sessions.values()):
        desk.intake._process_ended(session, 0)
    desk.pump()
    assert run.status != "live"


@pytest.mark.parametrize(
    ("reason", "status", "expected"),
    [
        (None, -9, ("failed", "signal 9")),
        (None, 0, ("finished", "exit")),  # os._exit(0)
        ("exit", 3, ("failed", "exit 3")),  # sys.exit(3)
        ("exit", 0, ("finished", "exit")),
        ("exception", 1, ("failed", "exception")),
        ("exception", -2, ("failed", "signal 2")),  # KeyboardInterrupt
    ],
)
def test_the_exit_status_completes_what_the_process_said(desk, client, ended, reason, status, expected):
    run = train(desk, client, reason=reason)
    gone(desk, run)
    (told,) = ended(status)["runs"]
    assert (told["status"], told["end_reason"]) == (run.status, run.end_reason) == expected
    known = summary.decode((desk.logdir / run.directory / "run.json").read_bytes())
    assert (known.status, known.end_reason) == expected


def test_a_process_that_is_not_the_command_itself_keeps_what_is_known_of_it(desk, client, ended):
    """torchrun's exit status is not its ranks'."""
    run = train(desk, client)
    gone(desk, run)
    (told,) = ended(1, pid=os.getpid() + 1)["runs"]
    assert (told["status"], told["end_reason"]) == ("lost", "gone")


@pytest.mark.parametrize(("status", "told"), [(1, "command exit 1"), (-15, "command signal 15")])
def test_a_child_that_went_quietly_is_marked_when_its_command_fails(desk, client, ended, status, told):
    """A rank that ends by sys.exit(3) says "exit", as one that is done does: nobody but its parent learns the number."""
    run = train(desk, client, reason="exit")
    gone(desk, run)
    for _ in range(2):  # asked again it answers the same
        (process,) = ended(status, pid=os.getpid() + 1)["runs"]
        assert (process["status"], process["end_reason"]) == ("failed", told)
    known = summary.decode((desk.logdir / run.directory / "run.json").read_bytes())
    assert (known.status, known.end_reason) == ("failed", told)


@pytest.mark.parametrize(
    ("reason", "status", "expected"),
    [
        ("exit", 0, ("finished", "exit")),
        ("exception", 1, ("failed", "exception")),
        ("detached", 1, ("finished", "detached")),
    ],
)
def test_a_child_is_not_blamed_for_what_it_has_told_itself(desk, client, ended, reason, status, expected):
    run = train(desk, client, reason=reason)
    gone(desk, run)
    (told,) = ended(status, pid=os.getpid() + 1)["runs"]
    assert (told["status"], told["end_reason"]) == (run.status, run.end_reason) == expected


def process(desk, *, rank, status, end_reason):
    hello = Hello(run="x", rank=rank, world_size=2, ring_id=rank + 1, monotonic_ns=1, wall_ns=1, token=TOKEN)
    run = desk.state.open_run(hello, Identity(os.geteuid(), 4_000_000 + rank, 5))
    run.status, run.end_reason = status, end_reason
    return run


def test_a_rank_that_tells_how_it_failed_clears_the_others(desk):
    """Also when it tells so only after the first question: it was on its way out."""
    done = process(desk, rank=0, status="finished", end_reason="exit")
    failed = process(desk, rank=1, status="live", end_reason="")
    message, caller = Ended(TOKEN, 5, 1), Identity(os.geteuid(), 5, 5)
    endings.conclude(message, caller, desk.state, {})
    assert (done.status, done.end_reason) == ("failed", "command exit 1")
    failed.status, failed.end_reason = "failed", "exception"
    endings.conclude(message, caller, desk.state, {})
    assert (done.status, done.end_reason) == ("finished", "exit")
    assert failed.end_reason == "exception"


def test_a_process_that_still_runs_stays_live(desk, client, ended):
    run = train(desk, client)
    (told,) = ended(0)["runs"]
    assert (told["status"], told["step"], told["kept_step"], told["trouble"]) == ("live", 3, 3, "")
    assert run.status == "live"


def test_others_tokens_and_users_are_told_nothing(desk, client, ended):
    run = train(desk, client)
    assert ended(0, token="someone elses")["runs"] == []
    run.identity = msgspec.structs.replace(run.identity, uid=1000)
    message = Ended(TOKEN, os.getpid(), 0)
    for uid, told in ((0, 1), (1000, 1), (1001, 0)):
        assert len(endings.conclude(message, Identity(uid, 5, 5), desk.state, {})["runs"]) == told


def test_a_folder_that_is_gone_is_told(desk, client, ended):
    run = train(desk, client)
    shutil.rmtree(desk.logdir)
    client.step(4)
    (told,) = ended(0)["runs"]
    assert told["trouble"] == f"{run.path} was deleted or moved"


def test_why_a_job_found_no_room_is_told(desk, client, ended):
    desk.logdir.write_text("")
    client.connect(token=TOKEN)
    assert ended(0) == {"t": "done", "runs": [], "refused": f"{desk.logdir}: File exists"}


@pytest.mark.parametrize("change", [{"token": ""}, {"pid": 0}, {"status": 256}, {"status": "9"}, {"status": -129}])
def test_impossible_endings_are_malformed(change):
    with pytest.raises(DecodeError):
        decode_message(json.dumps({"t": "ended", "token": TOKEN, "pid": 5, "status": 0, **change}).encode())
