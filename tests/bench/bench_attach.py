"""Attach and detach, over and over, on jobs that make it hard: who crashes, who hangs, how long the job stands still.

A full run takes some ten minutes. `--jobs` and `--only` take it in pieces, each written with `--save F`; `--add F...` puts
pieces together into one table, and runs nothing.
"""

import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from gpuwatch.attach import attacher
from gpuwatch.intake.rings import RingReader
from tests.bench import attach_peers
from tests.bench.attach_jobs import JOBS
from tests.bench.harness import Bench, percentile

HERE = Path(__file__).resolve().parent
HUNG_SECONDS = 20


class Records:
    """A daemon's ear and no more: takes each ring that is passed to it, and notes when its first record is there."""

    def __init__(self, path):
        self.path = path
        self.first = threading.Event()
        self.at = 0.0
        self._listening = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listening.bind(str(path))
        self._listening.listen()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        while True:
            connection, _ = self._listening.accept()
            threading.Thread(target=self._follow, args=(connection,), daemon=True).start()

    def _follow(self, connection):
        try:
            raw, fds, _, _ = socket.recv_fds(connection, 1 << 16, 1)
            ring = json.loads(raw)["ring"]
            reader = RingReader(fds[0], ring["slots"], ring["slot_bytes"], ring["id"])
            connection.send(json.dumps({"t": "welcome", "run": "bench", "directory": "bench", "acked": 0}).encode())
            while not reader.head:
                time.sleep(0.0005)
            self.at = time.perf_counter()
            self.first.set()
            while raw := connection.recv(1 << 16):
                number = json.loads(raw).get("n")
                if number:
                    connection.send(json.dumps({"t": "ack", "n": number}).encode())
            reader.close()
        except (OSError, ValueError, IndexError):
            pass
        finally:
            connection.close()


class Job:
    """One process of attach_jobs.py."""

    def __init__(self, name, site=None):
        environ = {key: value for key, value in os.environ.items() if not key.startswith(("GPUWATCH", "PYTHON"))}
        environ |= {"OMP_NUM_THREADS": "1"} | ({"PYTHONPATH": site} if site else {})
        call = [sys.executable, str(HERE / "attach_jobs.py"), name]
        self.process = subprocess.Popen(
            call, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environ
        )
        self.pid = self.process.pid
        assert self.process.stdout.readline() == "ready\n"
        self.told()

    def told(self):
        """What it answers; None when it is dead or hangs."""
        answers = []
        try:
            self.process.stdin.write("\n")
            self.process.stdin.flush()
            asking = threading.Thread(target=lambda: answers.append(self.process.stdout.readline()), daemon=True)
            asking.start()
            asking.join(HUNG_SECONDS)
        except BrokenPipeError:
            return None
        return json.loads(answers[0]) if answers and answers[0] else None

    def end(self):
        if self.process.poll() is None:
            os.kill(self.pid, signal.SIGKILL)
        self.process.wait()


class Tally:
    """What became of the cycles on one job."""

    def __init__(self, job):
        self.job, self.cycles, self.crashed, self.hung, self.wrong, self.queued = job, 0, 0, 0, 0, 0
        self.stopped, self.first, self.gaps, self.detach_gaps, self.idle = [], [], [], [], []
        self.failures = []

    @classmethod
    def added(cls, saved):
        """One of several, as they were saved, of the same job."""
        tally = cls(saved[0]["job"])
        for name, value in vars(tally).items():
            if name != "job":
                setattr(tally, name, sum((one[name] for one in saved), type(value)()))
        return tally


def cycles(name, count, records, tally):
    """`count` times: attach, wait for the first record, detach; the longest gap of the job's steps around each."""
    job = Job(name)
    for _ in range(count):
        tally.idle.append(job.told()["longest_gap_seconds"])
        tally.cycles += 1
        records.first.clear()
        began = time.perf_counter()
        outcome = attacher.apply(job.pid, "begin", {"socket": str(records.path), "told": None}, timeout_seconds=HUNG_SECONDS)
        if outcome.answer != "installed":
            tally.queued += outcome.answer == "queued"
            tally.failures.append(f"{outcome.answer}: {outcome.sentence}")
        elif records.first.wait(HUNG_SECONDS):
            tally.first.append(records.at - began)
        else:
            tally.failures.append("no first record")
        tally.stopped.append(outcome.stopped_microseconds)
        answer = job.told()
        if answer is not None:
            tally.gaps.append(answer["longest_gap_seconds"])
            outcome = attacher.apply(job.pid, "end", {}, timeout_seconds=HUNG_SECONDS)
            tally.stopped.append(outcome.stopped_microseconds)
            if outcome.answer != "detached":
                tally.failures.append(f"detach {outcome.answer}: {outcome.sentence}")
            answer = job.told()
        if answer is None:
            dead = job.process.poll() is not None
            tally.crashed, tally.hung = tally.crashed + dead, tally.hung + (not dead)
            job.end()
            job = Job(name)
            continue
        tally.detach_gaps.append(answer["longest_gap_seconds"])
        tally.wrong += answer["bad"] > 0
        time.sleep(0.02)
    job.end()


def peer_row(peer, jobs, rounds, site, folder):
    """One other tool: attaches, code ran, crashed, hung, wrong results, seconds p50, longest gap p50 and worst in ms."""
    ran = crashed = hung = wrong = 0
    took, gaps = [], []
    for name in jobs:
        for number in range(rounds):
            job = Job(name, site)
            time.sleep(0.2)
            job.told()
            ok, seconds = attach_peers.attach(peer, job.pid, folder / f"{name}{number}-{time.monotonic_ns()}")
            ran += ok
            took += [seconds] if seconds is not None else []
            answer = job.told()
            if answer is None:
                dead = job.process.poll() is not None
                crashed, hung = crashed + dead, hung + (not dead)
            else:
                gaps.append(answer["longest_gap_seconds"])
                wrong += answer["bad"] > 0
            job.end()
    middle = [statistics.median(values) if values else float("nan") for values in (took, gaps)]
    return peer.name, len(jobs) * rounds, ran, crashed, hung, wrong, middle[0], middle[1] * 1e3, max(gaps, default=0.0) * 1e3


PEER_JOBS = ("small", "matmul", "allocations")
PEER_COLUMNS = (
    "way in",
    "attaches",
    "code ran",
    "job crashed",
    "job hung",
    "wrong results",
    "seconds p50",
    "gap p50 ms",
    "gap max ms",
)


def main():
    options = {
        "--cycles": {"type": int, "help": "attach and detach so often in all [1000; --quick 24]"},
        "--jobs": {"nargs": "+", "choices": list(JOBS), "default": list(JOBS), "help": "only these"},
        "--peers": {"type": Path, "help": "a virtual environment with hypno, memray, debugpy and py-spy in it"},
        "--only": {"choices": ("cycles", "peers"), "help": "only this part; `peers` with --peer NAME only that one"},
        "--rounds": {"type": int, "default": 10, "help": "attach each peer so often to each job [10; --quick 1]"},
        "--peer": {"help": "only the peer whose name begins so"},
        "--save": {"type": Path, "metavar": "F", "help": "write what was measured, for --add"},
        "--add": {"type": Path, "nargs": "+", "metavar": "F", "help": "pieces that were saved: report them all as one"},
    }
    bench = Bench("attach", "Attaching to running jobs", options=options)
    measured = added(bench.options.add) if bench.options.add else measure(bench)
    tallies, rows = measured
    if tallies:
        report(bench, tallies)
        own = [tally for tally in tallies if tally.job in PEER_JOBS]
        rows = [our_row(own), *rows] if own else rows
    if rows:
        bench.table(f"Beside other tools, on the jobs {', '.join(PEER_JOBS)}", PEER_COLUMNS, rows)
    raise SystemExit(bench.finish())


def added(files):
    """(tallies, rows of peers) of several runs."""
    pieces = [json.loads(file.read_text()) for file in files]
    saved = [tally for piece in pieces for tally in piece["tallies"]]
    by_job = {job: [tally for tally in saved if tally["job"] == job] for job in JOBS}
    return [Tally.added(found) for found in by_job.values() if found], [row for piece in pieces for row in piece["peers"]]


def saved(file, tallies, rows):
    """What there is so far: a run that is cut off keeps it."""
    if file:
        file.write_text(json.dumps({"tallies": [vars(tally) for tally in tallies], "peers": rows}))


def measure(bench):
    """(tallies, rows of peers) of what the options ask for."""
    options, tallies, rows = bench.options, [], []
    total = options.cycles or (24 if bench.quick else 1000)
    with tempfile.TemporaryDirectory() as folder:
        records = Records(Path(folder) / "ear.sock")
        for name in options.jobs if options.only != "peers" else ():
            tallies.append(tally := Tally(name))
            cycles(name, -(-total // len(options.jobs)), records, tally)
            saved(options.save, tallies, rows)
            print(f"{name}: {tally.cycles} cycles, {tally.failures or 'no failure'}", file=sys.stderr, flush=True)
        site = next((options.peers / "lib").glob("python3*/site-packages"), None) if options.peers else None
        for peer in attach_peers.available(options.peers) if options.only != "cycles" else ():
            if peer.name.startswith(options.peer or ""):
                rows.append(
                    peer_row(peer, PEER_JOBS, 1 if bench.quick else options.rounds, str(site) if site else None, Path(folder))
                )
                saved(options.save, tallies, rows)
                print(f"{rows[-1]}", file=sys.stderr, flush=True)
    return tallies, rows


def our_row(tallies):
    gaps = [gap * 1e3 for tally in tallies for gap in tally.gaps]
    first = [seconds for tally in tallies for seconds in tally.first]
    total = [sum(getattr(tally, what) for tally in tallies) for what in ("cycles", "crashed", "hung", "wrong")]
    return "gpuwatch attach", total[0], len(first), *total[1:], statistics.median(first), statistics.median(gaps), max(gaps)


def report(bench, tallies):
    stopped = [value for tally in tallies for value in tally.stopped]
    first = [value * 1e3 for tally in tallies for value in tally.first]
    gaps, idle = ([value * 1e3 for tally in tallies for value in getattr(tally, what)] for what in ("gaps", "idle"))
    total = sum(tally.cycles for tally in tallies)
    bench.number("crashes of the job", sum(tally.crashed for tally in tallies), "", at_most=0, note=f"{total} cycles")
    bench.number("hangs of the job", sum(tally.hung for tally in tallies), "", at_most=0)
    bench.number("results that were not bit for bit right", sum(tally.wrong for tally in tallies), "", at_most=0)
    reached = (len(first) + sum(tally.queued for tally in tallies)) / total
    bench.number("first record, or told why it is queued", reached, "of the attaches", at_least=1.0)
    bench.number("job stopped, p50", statistics.median(stopped) / 1e3, "ms", at_most=1.0)
    bench.number("job stopped, p99", percentile(stopped, 99) / 1e3, "ms", at_most=5.0)
    bench.number(
        "command to first record, p50", statistics.median(first), "ms", at_most=100.0, note="without the start of the CLI"
    )
    bench.number("longest gap in the job's steps at an attach, p50", statistics.median(gaps), "ms", at_most=20.0)
    bench.number("the same without any attach, p50", statistics.median(idle), "ms", note="between two cycles, some 20 ms")
    rows = []
    for tally in tallies:
        values = (tally.stopped, tally.first, tally.idle, tally.gaps, tally.detach_gaps)
        stop, record, still, attach, detach = (statistics.median(value) if value else float("nan") for value in values)
        counts = (tally.cycles, tally.crashed, tally.hung, len(tally.first), tally.queued)
        worst = [max(values, default=float("nan")) * 1e3 for values in (tally.idle, tally.gaps)]
        rows.append((tally.job, *counts, stop / 1e3, record * 1e3, still * 1e3, attach * 1e3, detach * 1e3, *worst))
    columns = ("job", "cycles", "crashed", "hung", "first record", "queued", "stopped ms", "first record ms", "gap without ms")
    bench.table(
        "Each job (medians; worst: of all cycles, ms)",
        (*columns, "gap at attach ms", "gap at detach ms", "worst gap without", "worst at attach"),
        rows,
    )


if __name__ == "__main__":
    main()
