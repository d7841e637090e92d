"""Ten thousand connections and callers who say nothing: they are closed, and an honest rank does not notice."""

import os
import resource
import subprocess
import sys
import time

from tests.intake.conftest import Client
from tests.running_daemon import ROOT, RunningDaemon, wait_until

CONNECTIONS = 10_000

SWARM = """
import socket, sys, time
held, closed = [], 0
for number in range(int(sys.argv[2])):
    caller = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        caller.connect(sys.argv[1])
        if number % 3 == 0:
            caller.send(b"{" * 1000)
        held.append(caller)
    except OSError:
        caller.close()
    if len(held) > 500:
        held.pop(0).close()
print("called", flush=True)
time.sleep(60)
"""


def test_a_swarm_of_connections_does_not_delay_an_honest_rank(tmp_path):
    with RunningDaemon(tmp_path) as daemon:
        honest = Client(daemon.socket, slot_count=512).connect()
        wait_until(daemon.runs)
        swarm = subprocess.Popen(
            [sys.executable, "-c", SWARM, str(daemon.socket), str(CONNECTIONS)], stdout=subprocess.PIPE, cwd=ROOT
        )
        try:
            lags, n = [], 0
            while swarm.poll() is None and not _has_line(swarm):
                n = honest.numbered("meta", facts={"n": n})
                honest.step(n)
                sent = time.monotonic()
                wait_until(lambda: any(message and message.get("n") == n for message in honest.heard()), 10)  # noqa: B023
                lags.append(time.monotonic() - sent)
            assert len(lags) > 5
            assert sorted(lags)[len(lags) // 2] < 0.2
            # Every caller is closed sooner or later: refused at once, or two seconds after saying nothing.
            wait_until(lambda: len(os.listdir(f"/proc/{daemon.process.pid}/fd")) < 60, 20)
            wait_until(lambda: daemon.runs()["digits"].step == n)
            assert daemon.end() == 0
        finally:
            swarm.kill()
            swarm.wait(20)
            swarm.stdout.close()
            honest.close()
            honest.ring.close()


def _has_line(process):
    import select

    return bool(select.select([process.stdout], [], [], 0)[0])


def test_without_descriptors_callers_wait_and_the_loop_does_not_spin(tmp_path):
    with RunningDaemon(tmp_path) as daemon:
        pid = daemon.process.pid
        soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        highest = max(map(int, os.listdir(f"/proc/{pid}/fd")))
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (highest + 1, hard))
        client = Client(daemon.socket, 8, 512).connect()
        ticks_before = cpu_ticks(pid)
        time.sleep(1.0)
        assert cpu_ticks(pid) - ticks_before < 0.5 * os.sysconf("SC_CLK_TCK")
        assert client.heard() == []
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))
        wait_until(client.heard)
        client.close()
        client.ring.close()
        assert daemon.end() == 0


def cpu_ticks(pid):
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def test_who_says_nothing_is_closed_after_two_seconds_and_their_places_are_free_again(tmp_path):
    with RunningDaemon(tmp_path) as daemon:
        silent = [Client(daemon.socket, 8, 256).dial() for _ in range(32)]
        late = Client(daemon.socket, 8, 256).dial()
        wait_until(lambda: late.heard() == [None], 5)
        began = time.monotonic()
        wait_until(lambda: all(client.heard() == [None] for client in silent), 10)
        assert time.monotonic() - began < 6
        late.connect()
        wait_until(late.heard)
        for client in [*silent, late]:
            client.close()
            client.ring.close()
        assert daemon.end() == 0
