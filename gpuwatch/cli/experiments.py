"""What the experiments that `gpuwatch run` was asked for have found, in sentences, from run.json's facts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gpuwatch.cli import recorded

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from pathlib import Path

_UNFINISHED = "the command ended before it was over"


def sentences(asked: Collection[str], token: str, logdir: Path) -> list[str]:
    """One for each of `asked` ("lr_find", "amp_probe") and each run of this command, told by its rank 0.

    None where run.json cannot be read: then nothing is known of them.
    """
    firsts = [one for one in recorded.scan(logdir) if one.summary.hello.token == token and one.summary.rank == 0]
    trained = [one for one in firsts if one.summary.step]
    told = []
    for process in trained:
        name = f"{process.summary.directory}: " if len(trained) > 1 else ""
        facts = process.summary.facts
        if "lr_find" in asked:
            told.append(name + range_test(facts))
        if "amp_probe" in asked:
            told.append(name + amp_probe(facts))
    return told


def amp_probe(facts: Mapping[str, Any]) -> str:
    """The AMP probe's result with its interval and what it cost, or why there is none."""
    if why := facts.get("amp_probe_failed"):
        return f"no AMP probe: {why}"
    ratio, low, high = (facts.get(f"amp_speedup_{part}") for part in ("ratio", "low", "high"))
    if ratio is None:
        # It says nothing before it is over: nobody knows how many of its batches were dropped by then.
        return f"no AMP probe: {_UNFINISHED}; where it had begun in float32, its steps under autocast were dropped"
    spread = f" (95 %: {low:.2f} to {high:.2f})" if low is not None and high is not None else ""
    saved = facts.get("amp_memory_saving_ratio")
    memory = f", memory saved {saved:.1%}" if saved is not None else ""
    dropped = facts.get("amp_probe_dropped_batches", 0)
    cost = f"{dropped:,} batch{' was' if dropped == 1 else 'es were'} dropped"
    return f"AMP probe: {facts.get('amp_variant', 'autocast')} {ratio:.2f}x as fast as float32{spread}{memory}; {cost}"


def range_test(facts: Mapping[str, Any]) -> str:
    """What the range test suggests and how it ended, or why there is none."""
    if why := facts.get("lr_find_failed"):
        return f"no range test: {why}"
    if "lr_find_points" not in facts:
        return f"no range test: {_UNFINISHED}"
    steepest, tenth = facts.get("lr_find_suggestion"), facts.get("lr_find_minimum_tenth")
    found = "no suggestion: the loss fell nowhere" if steepest is None else f"suggested learning rate {steepest:.2g}"
    careful = f", a tenth of the minimum {tenth:.2g}" if tenth is not None else ""
    ended = " until the loss diverged" if facts.get("lr_find_diverged") else ""
    if facts.get("lr_find_cut_short"):
        ended = ", CUT SHORT: the command ended in the middle of it, and a model that it saved is the test's"
    points = facts["lr_find_points"]
    return f"range test: {found}{careful} ({points:,} step{'' if points == 1 else 's'}{ended})"
