"""`gpuwatch probe amp`: measure in the running job what mixed precision brings."""

from __future__ import annotations

import json
import secrets
import shlex
import signal
import sys
import time
from pathlib import Path
from typing import Any

import click
from gpuwatch_hooks import wire

from gpuwatch.cli import live_job, recorded
from gpuwatch.cli.terminal import dim, paint, quantity_of_bytes, quantity_of_seconds
from gpuwatch.state import summary

#: By then every rank has heard of it: they must switch at the same step.
_LEAD_STEPS = 8
_LEAD_SECONDS = 2.0
_WARM_UP_STEPS = 2
_LOOK_SECONDS = 0.25
_HALF = {"fp16": 1, "bf16": 2}


@click.group(short_help="Measure mixed precision in the running job.")
def command() -> None:
    """Experiments in a running job.

    \b
    Example:
      gpuwatch probe amp 4711
    """


@command.command("amp", short_help="Alternate autocast on and off, and report speed-up and memory saved.")
@click.argument("target", metavar="PID|RUN", shell_complete=recorded.complete)
@click.option("--steps", type=click.IntRange(20, 10_000), default=60, show_default=True, help="Counted steps in all.")
@click.option(
    "--dtype", type=click.Choice(sorted(_HALF)), help="For a job in float32; what the device does best, if not given."
)
@click.option("--drop", is_flag=True, help="In a job under autocast, do not apply the float32 steps either.")
@click.option("--yes", "-y", is_flag=True, help="Do not ask before batches are dropped.")
@click.option("--timeout", type=click.FloatRange(min=1.0), default=600.0, show_default=True, help="Seconds to wait at most.")
@recorded.logdir_option
@click.option("--json", "as_json", is_flag=True, help="Print the result as one object.")
def amp(
    *, target: str, steps: int, dtype: str | None, drop: bool, yes: bool, timeout: float, logdir: Path | None, as_json: bool
) -> None:
    """Alternate blocks of steps with autocast and without in the running job, in random order, timed by the device.

    A job under autocast takes its probed steps in float32 and applies them (the safe direction) unless --drop is given. A job
    in float32 computes its probed steps under autocast on its own batches and drops them: no weight moves, and random
    numbers, BatchNorm's statistics, loss scaler and schedulers are put back. You are asked before batches are lost.

    \b
    Examples:
      gpuwatch probe amp 4711
      gpuwatch probe amp digits --steps 120 --json
    """
    ranks = live_job.find(target, logdir)
    first = ranks[0].process
    drops = drop or not _is_half(first.summary.values.get("autocast_dtype"))
    block_steps = max(3, min(10, steps // 12))
    rounds = max(2, round(steps / (2 * block_steps)))
    lost = rounds * (block_steps + _WARM_UP_STEPS)
    if drops and not yes:
        question = f"{first.summary.run} will drop {lost} batches (no weight moves while they are computed); go on?"
        if not sys.stdin.isatty():
            raise click.UsageError(f"{question.removesuffix('; go on?')}: say --yes")
        click.confirm(question, abort=True, err=True)
    rate = first.steps_per_second or 1.0
    lead = _LEAD_STEPS if len(ranks) == 1 else max(_LEAD_STEPS, int(_LEAD_SECONDS * rate) + 1)
    ticket = secrets.randbits(48)
    request: dict[str, Any] = {"rounds": rounds, "block_steps": block_steps, "drop": drop, "ticket": ticket, "seed": ticket}
    request |= {"first_step": max(rank.process.summary.step for rank in ranks) + lead, "dtype": _HALF.get(dtype or "", 0)}
    for rank in ranks:
        live_job.tell(rank, "amp_probe", request)
    what = f"drops {lost} batches at most" if drops else f"takes {lost} steps in float32 at most"
    shown = f"gpuwatch status {shlex.quote(str(first.path.absolute()))} --json"
    goes_on = f"the probe goes on in the job and {what}; its result will be in: {shown}"
    try:
        facts = _await(ranks[0], ticket, 2 * lost + lead, rate, timeout, goes_on)
    except KeyboardInterrupt:  # the job knows no word that would stop it
        click.echo(f"gpuwatch: {goes_on}", err=True)
        raise SystemExit(128 + signal.SIGINT) from None
    if "amp_probe_failed" in facts:
        raise click.ClickException(f"not probed: {facts['amp_probe_failed']}")
    if as_json:
        click.echo(json.dumps({"run": first.summary.run, **facts}, indent=2))
    else:
        _show(facts)


def _is_half(value: float | str | None) -> bool:
    return value is not None and wire.AUTOCAST_DTYPES[int(summary.number(value))] in {"float16", "bfloat16"}


def _await(
    rank: live_job.LiveRank, ticket: int, steps: int, rate: float, timeout_seconds: float, goes_on: str
) -> dict[str, Any]:
    """The facts of this ticket. Raises a click error when the job ends first, or takes too long, which says `goes_on`."""
    path, began, start = rank.process.path, time.monotonic(), rank.process.summary.step
    shown = sys.stderr.isatty()
    if shown:
        click.echo(f"about {quantity_of_seconds(steps / rate)}", err=True)
    try:
        while True:
            known = summary.decode((path / "run.json").read_bytes())
            if known is not None and known.facts.get("amp_probe_ticket") == ticket:
                facts: dict[str, Any] = {
                    name: value
                    for name, value in known.facts.items()
                    if name.startswith("amp_") and name != "amp_probe_busy_ticket"
                }
                failed = facts.pop("amp_probe_failed", "")
                return {"amp_probe_failed": failed} if failed else facts
            if known is not None and known.facts.get("amp_probe_busy_ticket") == ticket:
                return {"amp_probe_failed": "another probe of this job is under way; ask again when it is over"}
            if known is None or recorded.Recorded(path, known).status != "live":
                raise click.ClickException("the job ended before the probe was over")
            if time.monotonic() - began > timeout_seconds:
                raise click.ClickException(f"no result after {timeout_seconds:g} s; {goes_on} (--timeout waits longer)")
            if shown:
                done = min(steps, max(0, known.step - start))
                filled = round(30 * done / steps)
                click.echo(f"\r\x1b[K[{'#' * filled}{'.' * (30 - filled)}] step {done} of {steps}", nl=False, err=True)
            time.sleep(_LOOK_SECONDS)
    except OSError as error:
        raise click.ClickException(f"{path} cannot be read ({error.strerror})") from None
    finally:
        if shown:
            click.echo("\r\x1b[K", nl=False, err=True)


def _show(facts: dict[str, Any]) -> None:
    variant = facts["amp_variant"]
    peaks = [facts.get(name) for name in ("amp_base_peak_bytes", "amp_peak_bytes")]
    speeds = [facts["amp_base_steps_per_second"], facts["amp_steps_per_second"]]
    click.echo(dim(f"{'precision':<12}{'it/s':>10}{'peak memory':>16}"))
    for name, speed, peak in zip(("float32", variant), speeds, peaks, strict=True):
        click.echo(f"{name:<12}{speed:>10.4g}{quantity_of_bytes(peak) if peak else '-':>16}")
    ratio, low, high = (facts[f"amp_speedup_{part}"] for part in ("ratio", "low", "high"))
    verdict = "faster" if low > 1 else "slower" if high < 1 else "no difference that these steps could show"
    colour = "green" if low > 1 else "yellow"
    click.echo(f"speed-up {paint(f'{ratio:.2f}x', colour, bold=True)} (95 %: {low:.2f} to {high:.2f}), {verdict}")
    if facts.get("amp_memory_saving_ratio") is not None:
        click.echo(f"memory saved {facts['amp_memory_saving_ratio']:.1%}")
    click.echo(dim(f"{facts['amp_probe_dropped_batches']:,} batches were dropped"))
