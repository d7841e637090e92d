"""Recorded runs as the commands see them: found below a log directory, by name, unambiguous prefix or path."""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from typing import NamedTuple

import click

from gpuwatch import announcement, config, paths
from gpuwatch.state import summary
from gpuwatch.state.directories import SUMMARY_NAME, reduce_name
from gpuwatch.state.summary import RunSummary

#: --logdir of every command that reads runs.
logdir_option = click.option(
    "--logdir",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Look for runs below DIR [default: where the daemon records, else ./runs].",
)


class Recorded(NamedTuple):
    """One process of a run (a rank and attempt), and where it is recorded."""

    path: Path
    summary: RunSummary

    @property
    def status(self) -> str:
        """As in run.json, except that a live run whose process or daemon is gone is lost: nobody follows it any more."""
        known = self.summary
        followers = [known.identity] if known.daemon is None else [known.identity, known.daemon]
        if known.status == "live" and not all(_is_alive(process.pid, process.start_ticks) for process in followers):
            return "lost"
        return known.status

    @property
    def steps_per_second(self) -> float | None:
        """Over the run's last window of steps; None before the second step."""
        took = [summary.number(value) for value in self.summary.recent.get("step_seconds", [])]
        usable = [value for value in took if value > 0]
        return len(usable) / sum(usable) if usable else None

    @property
    def lasted_seconds(self) -> float:
        return max(0.0, self.summary.updated_wall_seconds - self.summary.started_wall_seconds)


def log_directory(given: Path | None) -> Path:
    """Where to look: --logdir, else where a daemon of this user records now, else where one would."""
    if given is not None:
        return given
    announced = announcement.read(paths.socket_to_call())
    if announced is not None and Path(f"/proc/{announced.pid}").exists():
        return Path(announced.logdir)
    return Path(settings().daemon.logdir)


def settings() -> config.Config:
    """The configuration as a daemon that is started here would read it. Raises a click error."""
    from gpuwatch.detectors import registry

    try:
        return config.load(rules=registry.DEFAULTS)
    except config.ConfigError as error:
        raise click.UsageError(str(error)) from None


def name_given(name: str | None) -> str | None:
    """A run's name as somebody typed it, as the name of its folder. Raises a click error for one that has nothing to keep."""
    if name is None:
        return None
    kept = reduce_name(name, fallback="")
    if not kept:
        raise click.UsageError(f"{name!r} is no name for a run, whose folder is called so: give it letters or digits")
    return kept


def scan(logdir: Path) -> list[Recorded]:
    """Every process of every run below `logdir`, by the time it started."""
    found = [*_in_folder(logdir, "*"), *_in_folder(logdir, "*/rank*")]
    return sorted(found, key=lambda recorded: (recorded.summary.started_wall_seconds, recorded.summary.rank))


def newest(logdir: Path) -> list[Recorded]:
    """The ranks of the run that was written last. Raises a click error when there is none."""
    everything = scan(logdir)
    if not everything:
        raise click.ClickException(nothing_in(logdir))
    last = max(everything, key=lambda recorded: (recorded.status == "live", recorded.summary.updated_wall_seconds))
    return _latest_attempts([recorded for recorded in everything if recorded.summary.run == last.summary.run])


def nothing_in(logdir: Path) -> str:
    """What to say of a log directory without a run."""
    return f"no run is recorded in {logdir}{_elsewhere(logdir)}; start one with: gpuwatch run -- python train.py"


def _elsewhere(logdir: Path) -> str:
    """Where a daemon recorded that is gone without having taken its announcement back."""
    announced = announcement.read(paths.socket_to_call())
    if announced is None or Path(announced.logdir) == logdir.absolute() or not Path(announced.logdir).is_dir():
        return ""
    return f" (the last daemon here recorded in {announced.logdir}: --logdir)"


def find(name: str, logdir: Path) -> list[Recorded]:
    """The ranks of run `name`: a path, a name, one rank's `NAME/rankN`, or the beginning of one name. Raises a click error."""
    path = Path(name)
    if path.is_dir() and (os.sep in name or not (logdir / name).is_dir()):
        found = [*_in_folder(path.parent, path.name), *_in_folder(path, "rank*")]
        if found:
            return _latest_attempts(found)
        if os.sep in name:
            raise click.UsageError(f"no run is recorded in {path}")
    everything = scan(logdir)
    for matches in (
        [r for r in everything if r.summary.directory == name],
        [r for r in everything if r.summary.run == name],
    ):
        if matches:
            return _latest_attempts(matches)
    names = sorted({recorded.summary.run for recorded in everything})
    beginning = [known for known in names if known.startswith(name)]
    if len(beginning) == 1:
        return _latest_attempts([r for r in everything if r.summary.run == beginning[0]])
    raise click.UsageError(_not_found(name, names, beginning, logdir))


def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:  # noqa: ARG001  # click's signature
    """Names of runs that begin with `incomplete`, for the shell; none where the log directory is not known."""
    try:
        place = log_directory(ctx.params.get("logdir"))
    except click.ClickException:  # a shell shows what completion says in the middle of the line that is being typed
        return []
    return sorted({name for recorded in scan(place) if (name := recorded.summary.run).startswith(incomplete)})


def _not_found(name: str, names: list[str], beginning: list[str], logdir: Path) -> str:
    if beginning:
        return f"{name!r} may be {', '.join(beginning[:8])}{', ...' if len(beginning) > 8 else ''}; say which"
    if not names:
        return f"no run is recorded in {logdir}{_elsewhere(logdir)}"
    # Names usually end in a time that nobody types: beginnings of the same length are compared too.
    known = {**{full[: len(name)]: full for full in names}, **{full: full for full in names}}
    close = difflib.get_close_matches(name, known, n=1)
    return f"no run {name!r} in {logdir}{_elsewhere(logdir)}; " + (
        f"did you mean {known[close[0]]!r}?" if close else "gpuwatch runs lists them"
    )


def _in_folder(folder: Path, pattern: str) -> list[Recorded]:
    found = []
    for file in sorted(folder.glob(f"{pattern}/{SUMMARY_NAME}")):
        try:
            known = summary.decode(file.read_bytes())
        except OSError:
            continue
        if known is not None:
            found.append(Recorded(file.parent, known))
    return found


def _latest_attempts(found: list[Recorded]) -> list[Recorded]:
    """One entry a rank, in rank order: its newest attempt."""
    latest = {r.summary.rank: r for r in sorted(found, key=lambda r: (r.summary.attempt, r.summary.started_wall_seconds))}
    return [latest[rank] for rank in sorted(latest)]


def _is_alive(pid: int, start_ticks: int) -> bool:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return False
    return fields[0] != "Z" and start_ticks in {0, int(fields[19])}
