"""Runs the programs of this folder, two at a time: each bare and under `gpuwatch run`, with one real daemon for all."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from gpuwatch.state import records
from gpuwatch.state.journal_reader import JournalReader
from gpuwatch.state.steps import StepMerger
from tests.running_daemon import RunningDaemon, wait_until

HERE = Path(__file__).resolve().parent
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
#: name -> arguments of the Python interpreter; "{folder}" is a folder of the program's own.
PROGRAMS = {
    "plain": ["plain.py"],
    "gan": ["gan.py"],
    "accumulate": ["accumulate.py"],
    "accumulate_divide": ["accumulate.py", "--divide"],
    "bf16": ["bf16.py"],
    "fp16_scaler": ["fp16_scaler.py"],
    "fp16_scaler_fused": ["fp16_scaler.py", "--fused"],
    "clip": ["clip.py"],
    "clip_unscaled": ["clip.py", "--scaler", "right"],
    "clip_scaled": ["clip.py", "--scaler", "wrong"],
    "lbfgs": ["lbfgs.py"],
    "closure": ["closure.py"],
    "in_backward": ["in_backward.py"],
    "groups": ["groups.py"],
    "frozen": ["frozen.py"],
    "tied": ["tied.py"],
    "sparse": ["sparse.py"],
    "summary_writer": ["summary_writer.py", "{folder}"],
    "compiled": ["compiled.py"],
    "spawned": ["spawned.py"],
    "ending_code": ["ending.py", "code"],
    "ending_exception": ["ending.py", "exception"],
    "reads_stdin": ["reads_stdin.py"],
    "with_own_site": ["with_own_site.py"],
    "by_hand": ["by_hand.py"],
    "ddp": [*TORCHRUN, "ddp.py"],
    "lightning_trainer": ["lightning_trainer.py"],
    "hf_trainer": ["hf_trainer.py"],
}
#: Bare runs that need an interpreter of their own: for its start, for a traceback without runpy's frames, for heavy imports.
APART = {"with_own_site", "by_hand", "spawned", "ending_exception", "ddp", "lightning_trainer", "hf_trainer"}
STDIN = {"reads_stdin": "0 1\n1 3\n2 5\n"}
ENVIRONMENT = {"with_own_site": {"PYTHONPATH": str(HERE / "own_site")}}


class Said(NamedTuple):
    """How a process ended, and the numbers of each line that begins with `final`."""

    returncode: int
    stderr: str
    final: list[dict[str, float]]


class Run:
    """What the daemon has on disk about one process of a program."""

    def __init__(self, folder, summary):
        self.folder = folder
        self.summary = summary
        self.values = summary.values

    def journal(self):
        """Every record of the journal, decoded, in order."""
        reader = JournalReader(self.folder / "journal")
        found = [entry.frame.decode() for entry in reader.read(1_000_000)]
        reader.close()
        assert reader.skipped_bytes == 0
        return found

    def steps(self):
        """The steps, each merged from its optimizers' parts."""
        merger, steps = StepMerger(), []
        for record in self.journal():
            if isinstance(record, (records.StepPart, records.TensorRows, records.HistogramRows)):
                steps += merger.feed(record)
        return steps + merger.close()

    def parts(self):
        return [record for record in self.journal() if isinstance(record, records.StepPart)]

    def names(self, table):
        """Names of a table in its last version."""
        chunks = [record for record in self.journal() if isinstance(record, records.Names) and record.table == table]
        newest = max((chunk.version for chunk in chunks), default=0)
        return [name for chunk in chunks if chunk.version == newest for name in chunk.names]

    def scalars(self, tag):
        """[(step, value)] under this tag in TensorBoard."""
        return [(event.step, event.value) for event in self.events().Scalars(tag)]

    def events(self):
        """What stock TensorBoard reads, once it has all steps of the run."""

        def read():
            events = EventAccumulator(str(self.folder), size_guidance={"scalars": 0, "images": 0})
            events.Reload()
            found = events.Tags()["scalars"]
            told = {event.step for event in events.Scalars("train/loss")} if "train/loss" in found else {0}
            return events if max(told) >= self.summary.step else None

        return wait_until(read, 30)


class Zoo:
    """Starts the programs in the order of `names`; `outcome` waits for one."""

    def __init__(self, folder, names):
        self._folder = folder
        self.daemon = RunningDaemon(folder)
        self._pool = ThreadPoolExecutor(2)
        watched = [sys.executable, "-m", "gpuwatch", "run", "--name"]
        self._together = self._pool.submit(self._run_together, [name for name in names if name not in APART])
        self._bare, self._watched = {}, {}
        for name in names:
            self._watched[name] = self._pool.submit(self._run, name, [*watched, name, "--"])
            if name in APART:
                self._bare[name] = self._pool.submit(self._run, name, [])

    def close(self):
        for future in [*self._bare.values(), *self._watched.values()]:
            future.cancel()
        self._pool.shutdown()
        self.daemon.kill()

    def bare(self, name):
        return self._together.result()[name] if name not in APART else self._bare[name].result()

    def watched(self, name):
        return self._watched[name].result()

    def runs(self, name, of=None):
        """The Runs named `name` (by default as the program) by rank, once the daemon has seen them end."""
        if of is None:
            self.watched(name)
        else:
            self.bare(of)

        def ended():
            found = {folder: known for folder, known in self.daemon.runs().items() if known.run == name}
            over = found and all(known.status != "live" for known in found.values())
            return found if over else None

        found = wait_until(ended, 30)
        ordered = sorted(found.items(), key=lambda item: (item[1].rank, item[1].attempt))
        return [Run(self.daemon.logdir / folder, known) for folder, known in ordered]

    def run(self, name):
        """The only Run of a program: its workers and launchers have none."""
        (only,) = self.runs(name)
        return only

    def _run(self, name, prefix):
        folder, arguments = self._prepared(name, "watched" if prefix else "bare")

        def run():
            return subprocess.run(
                [*prefix, sys.executable, *arguments],
                input=STDIN.get(name, ""),
                capture_output=True,
                text=True,
                timeout=110,
                check=False,
                cwd=folder,
                env=environment(self.daemon, **ENVIRONMENT.get(name, {})),
            )

        ended = run()
        # gloo's threads end a process at its exit now and then, without any hook of ours: that is nothing to compare with.
        if not prefix and "terminate called without an active exception" in ended.stderr:
            ended = run()
        return said(ended)

    def _run_together(self, names):
        """{name: Said} of bare runs, by bare.py."""
        folders, jobs = {}, []
        for name in names:
            folders[name], arguments = self._prepared(name, "bare")
            jobs.append(json.dumps({"argv": arguments, "folder": str(folders[name]), "stdin": STDIN.get(name, "")}))
        runner = [sys.executable, str(HERE / "bare.py")]
        env = environment(self.daemon)
        done = subprocess.run(
            runner, input="\n".join(jobs), stdout=subprocess.PIPE, text=True, timeout=280, check=True, env=env
        )
        ends = zip(names, done.stdout.split(), strict=True)
        return {name: Said(int(code), *output(folders[name])) for name, code in ends}

    def _prepared(self, name, kind):
        """A new folder for the program, and the interpreter's arguments."""
        folder = self._folder / kind / name
        folder.mkdir(parents=True)
        arguments = [str(HERE / argument) if argument.endswith(".py") else argument for argument in PROGRAMS[name]]
        return folder, [argument.format(folder=folder) for argument in arguments]


def environment(daemon, **more):
    """One thread, the zoo's daemon, and no statistic thinned out because the steps are tiny and the hooks are not."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("GPUWATCH", "PYTHON"))}
    settings = {"GPUWATCH_SOCKET": str(daemon.socket), "GPUWATCH_HOOKS_OVERHEAD_BUDGET": "1.0", "OMP_NUM_THREADS": "1"}
    return {**clean, **settings, **more}


def said(process):
    return Said(process.returncode, process.stderr, final_lines(process.stdout))


def output(folder):
    """(stderr, final lines) of a program that bare.py has run."""
    return (folder / "stderr").read_text(), final_lines((folder / "stdout").read_text())


def final_lines(text):
    lines = [line.split()[1:] for line in text.splitlines() if line.startswith("final ")]
    final = [{key: float(value) for key, value in (cell.split("=") for cell in line)} for line in lines]
    return sorted(final, key=lambda numbers: numbers.get("rank", 0.0))  # ranks end in any order
