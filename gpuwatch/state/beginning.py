"""The first steps of a run, read back from its journal by a daemon that comes back to it.

Rules measure a run against its beginning: without it a run that has learned nearly everything looks untrained to a daemon
that saw it converged only, and what its last few percent do looks like an explosion.
"""

from __future__ import annotations

from gpuwatch_hooks import wire

from gpuwatch.state.journal import segment_numbers
from gpuwatch.state.journal_reader import JournalReader
from gpuwatch.state.records import DecodeError, StepPart
from gpuwatch.state.steps import Step, StepMerger

#: As many as any rule calls the first.
FIRST_STEPS = 20
#: A step has some records of tables beside its own; more than this is not read, however few steps it gave.
MAX_FRAMES = 5000
_FRAMES_A_READ = 100


def first_steps(directory_fd: int) -> list[Step]:
    """Steps 1 to FIRST_STEPS without their tables, as far as they are there; [] where the journal's beginning is gone."""
    if min(segment_numbers(directory_fd), default=0) != 1:
        return []
    found: list[Step] = []
    merger = StepMerger()
    reader = JournalReader(directory_fd)
    try:
        for _ in range(MAX_FRAMES // _FRAMES_A_READ):
            entries = reader.read(_FRAMES_A_READ)
            for entry in entries:
                if entry.frame.kind == wire.KIND_STEP:
                    try:
                        part = entry.frame.decode()
                    except DecodeError:
                        continue
                    found += merger.feed(part) if isinstance(part, StepPart) else []
            if not entries or (found and found[-1].step >= FIRST_STEPS):
                break
    finally:
        reader.close()
    return [step for step in found if step.step <= FIRST_STEPS]
