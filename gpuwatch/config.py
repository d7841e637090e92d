"""The daemon's settings: every one with its unit, its default and its bounds, frozen once read.

Sources, each overriding the one before: the defaults below, the file (`--config`, else ./gpuwatch.toml, else
~/.config/gpuwatch/gpuwatch.toml), GPUWATCH_SECTION_KEY in the environment, and the flags of the command line. Whatever is
unknown, of the wrong type or impossible is refused with its path: a misspelt key that is quietly ignored is a setting
that its author believes in.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from gpuwatch import allowed_values

Seconds = Annotated[float, msgspec.Meta(gt=0, le=86400)]
Count = Annotated[int, msgspec.Meta(ge=1, le=1 << 31)]


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A table of gpuwatch.toml."""


class Daemon(Section, frozen=True):
    logdir: str = "runs"  # where runs are recorded: LOGDIR/RUN/[rankN/]
    listen: str = "127.0.0.1:9877"  # address:port of the HTTP exporter; port 0 takes any free one
    socket: str = ""  # path of the control socket; empty: the place that the hooks look in (paths.py)
    poll_seconds: Annotated[float, msgspec.Meta(ge=0.01, le=1)] = (
        1.0  # how often rings are looked at; one that fills fast sooner, one whose process has ended at once
    )
    sync_seconds: Annotated[float, msgspec.Meta(ge=0.1, le=60)] = 5.0  # fdatasync of the journals: what a power failure costs
    shutdown_seconds: Seconds = 5.0  # SIGTERM drains and flushes for no longer than this
    log_format: Literal["text", "json"] = "text"
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_file: str = ""  # the log goes here, in three files of 1 MiB at most; empty: to standard error


class Hooks(Section, frozen=True):
    """What the daemon asks of the training processes (a setting in a job's own environment wins)."""

    every: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 1  # per-tensor statistics at each k-th optimizer step
    histograms: bool = True
    overhead_budget: Annotated[float, msgspec.Meta(gt=0, le=1)] = 0.01  # share of the step time that the hooks may take
    detach_after_seconds: Annotated[float, msgspec.Meta(ge=0)] = (
        600.0  # attached hooks leave after so long without a daemon; 0: never
    )
    ring_slots: Annotated[int, msgspec.Meta(ge=8, le=4080)] = 1024  # 16 KiB each; read by the hooks when they begin
    kernel: Literal["auto", "nvrtc", "triton", "foreach"] = (
        "auto"  # on a GPU: the fused one by NVRTC, else by Triton, else torch's own operators
    )


class Sampling(Section, frozen=True):
    """How often devices and the host are read. The costs behind the defaults: measurements of NVML on an H100."""

    gpus: bool = True  # read NVML at all
    host: bool = True  # read /proc: the host's and the training processes'
    memory_hz: Annotated[float, msgspec.Meta(ge=0.1, le=100)] = 50.0  # used memory (6.7 us a call): the peak between scrapes
    fast_hz: Annotated[float, msgspec.Meta(ge=0.1, le=50)] = 10.0  # utilization, power, clocks, temperature (1 us a call)
    dear_seconds: Annotated[float, msgspec.Meta(ge=0.5, le=60)] = 1.0  # energy, processes and their utilization (2 ms a call)
    slow_seconds: Annotated[float, msgspec.Meta(ge=1, le=3600)] = 10.0  # limits, ECC, remapped rows, links
    gpm: bool = True  # activity of SMs, tensor cores and memory on Hopper and newer (0.08 ms of CPU a second for each GPU)
    host_seconds: Annotated[float, msgspec.Meta(ge=0.1, le=60)] = 1.0
    deadline_seconds: Annotated[float, msgspec.Meta(ge=0.5, le=60)] = 5.0  # a driver call slower than this is a hang


class Prometheus(Section, frozen=True):
    enabled: bool = True  # serve HTTP at all
    layer_top_k: Annotated[int, msgspec.Meta(ge=0, le=2000)] = 0  # layers with a series of their own in each run
    details: bool = False  # about 25 more series a GPU, and one a process: docs/gpus.md names them
    allowed_hosts: list[str] = []  # Host headers answered besides the loopback names (DNS rebinding)
    allow_remote: bool = False  # permit an address that is not loopback; there is no TLS and no password here
    connections: Annotated[int, msgspec.Meta(ge=1, le=1024)] = 16
    timeout_seconds: Seconds = 5.0


class TensorBoard(Section, frozen=True):
    enabled: bool = True
    flush_seconds: Annotated[float, msgspec.Meta(ge=0.1, le=600)] = 2.0  # how long a point may wait for its file
    layers: bool = True  # grad/LAYER/*, weight/LAYER/*, update/LAYER/*
    # Thinned by time: 150 layers are 900 values a step, where the rest of a step is 25. 0 writes them at every step.
    layers_every_seconds: Annotated[float, msgspec.Meta(ge=0, le=86400)] = 10.0
    histograms_every_seconds: Annotated[float, msgspec.Meta(ge=0, le=86400)] = 30.0


class Notify(Section, frozen=True):
    """Who is told of findings. Empty: nobody."""

    command: list[str] = []  # a program and its arguments; gets the finding as JSON on its standard input, and never a shell
    webhook: Annotated[str, msgspec.Meta(pattern=r"^$|^https?://[^\s/?#@]+(?:[/?]\S*)?$")] = ""  # gets it as a POST
    token_file: str = ""  # the webhook is sent its content as a bearer token
    severity: Literal["info", "warning", "critical"] = "warning"  # and above
    timeout_seconds: Annotated[float, msgspec.Meta(gt=0, le=600)] = 10.0  # of one attempt
    attempts: Annotated[int, msgspec.Meta(ge=1, le=100)] = 6  # 1, 2, 4 ... up to 60 seconds apart
    queue: Annotated[int, msgspec.Meta(ge=1, le=100_000)] = (
        256  # that may wait for a target; what is more is dropped and counted
    )


class Limits(Section, frozen=True):
    """What any one peer, user or run may take of this daemon."""

    peers: Annotated[int, msgspec.Meta(ge=1, le=65536)] = 256
    peers_per_uid: Annotated[int, msgspec.Meta(ge=1, le=65536)] = 32
    handshake_seconds: Annotated[float, msgspec.Meta(gt=0, le=60)] = 2.0
    runs_per_uid: Count = 64  # live runs (a rank is a run of its own)
    tensors_per_run: Annotated[int, msgspec.Meta(ge=1, le=2000)] = 2000
    journal_bytes: Annotated[int, msgspec.Meta(ge=128 << 20, le=1 << 50)] = 1 << 30  # of one run; its oldest records go first
    tags_per_run: Annotated[int, msgspec.Meta(ge=1, le=500)] = 500  # scalar and media tags; the rest go under `_other`
    series: Annotated[int, msgspec.Meta(ge=100)] = 20_000  # tags, layers and groups of all live runs together
    ring_bytes: Annotated[int, msgspec.Meta(ge=8192, le=64 << 20)] = 64 << 20
    media_bytes: Annotated[int, msgspec.Meta(ge=1024, le=16 << 20)] = 16 << 20
    process_rows: Count = 64  # GPU processes with series of their own, on each GPU


RuleValue = bool | int | float | str
#: What a rule may be told: its name -> the defaults of its thresholds. The detectors know; this module does not.
RuleDefaults = Mapping[str, Mapping[str, RuleValue]]


class Config(Section, frozen=True):
    daemon: Daemon = Daemon()
    hooks: Hooks = Hooks()
    sampling: Sampling = Sampling()
    prometheus: Prometheus = Prometheus()
    tensorboard: TensorBoard = TensorBoard()
    notify: Notify = Notify()
    limits: Limits = Limits()
    rules: dict[str, dict[str, RuleValue]] = {}  # rules.NAME.enabled and its thresholds


class ConfigError(ValueError):
    """A setting that cannot be used; the text is one sentence with the source and the path of the key."""


SECTIONS: dict[str, type[Section]] = {
    "daemon": Daemon,
    "hooks": Hooks,
    "sampling": Sampling,
    "prometheus": Prometheus,
    "tensorboard": TensorBoard,
    "notify": Notify,
    "limits": Limits,
}


def load(
    file: Path | None = None,
    environ: Mapping[str, str] | None = None,
    flags: Mapping[str, object] | None = None,
    rules: RuleDefaults | None = None,
) -> Config:
    """The settings from all sources. `flags`: {"daemon.listen": "..."}; None values are flags that were not given.

    With `rules` (each known rule's thresholds) the [rules.NAME] tables are checked too. Raises ConfigError.
    """
    environ = os.environ if environ is None else environ
    tree: dict[str, dict[str, Any]] = {}
    path = file or _default_file(environ)
    if path is not None:
        tree = _read_toml(path)
        _listening(_check(tree, str(path), rules), f"{path}: daemon.listen")
    _apply_environment(tree, environ, rules)
    # Before the flags are put over it: a flag may replace a setting, not hide that it is wrong.
    _listening(_check(tree, "environment", rules), "GPUWATCH_DAEMON_LISTEN")
    for key, value in (flags or {}).items():
        if value is not None:
            section, _, name = key.partition(".")
            tree.setdefault(section, {})[name] = value
    config = _check(tree, "command line", rules)
    _listening(config, "--listen")
    return config


def _listening(config: Config, source: str) -> None:
    parse_listen(config.daemon.listen, source)


def parse_listen(listen: str, source: str = "daemon.listen") -> tuple[str, int]:
    """ADDR:PORT or [V6]:PORT as (address, port). Raises ConfigError, which names the `source`."""
    match = re.fullmatch(r"\[([0-9a-fA-F:.]+)\]:(\d{1,5})|([^\[\]:]+):(\d{1,5})", listen, re.ASCII)
    port = int(match[2] or match[4]) if match else 65536
    if match is None or port > 65535:
        raise ConfigError(f"{source} must be ADDRESS:PORT, for example 127.0.0.1:9877, got {allowed_values.shown(listen)}")
    return match[1] or match[3], port


def _default_file(environ: Mapping[str, str]) -> Path | None:
    xdg = environ.get("XDG_CONFIG_HOME")
    home = Path(xdg) if xdg else Path(environ.get("HOME") or "/") / ".config"
    for path in (Path("gpuwatch.toml"), home / "gpuwatch" / "gpuwatch.toml"):
        if path.is_file():
            return path
    return None


def _read_toml(path: Path) -> dict[str, Any]:
    import tomllib  # noqa: PLC0415  # most daemons have no file

    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{path}: not TOML: {error}") from None


def _apply_environment(tree: dict[str, dict[str, Any]], environ: Mapping[str, str], rules: RuleDefaults | None) -> None:
    for variable in sorted(environ):
        name = variable.removeprefix("GPUWATCH_").lower()
        if not variable.startswith("GPUWATCH_"):
            continue
        section, _, key = name.partition("_")
        if section == "rules" and rules is not None:
            rule = max((rule for rule in rules if key.startswith(rule + "_")), key=len, default=None)
            if rule is None:
                raise ConfigError(f"{variable}: no rule has this name")
            value = _rule_value(variable, environ[variable], key.removeprefix(rule + "_"), rules[rule])
            tree.setdefault("rules", {}).setdefault(rule, {})[key.removeprefix(rule + "_")] = value
        elif section in SECTIONS:
            tree.setdefault(section, {})[key] = _typed(variable, environ[variable], key, SECTIONS[section])


def _typed(variable: str, text: str, key: str, section: type[Section]) -> object:
    """A string of the environment as the type of its field; the field's bounds are checked here too."""
    fields = {field.name: field for field in msgspec.structs.fields(section)}
    if key not in fields:
        raise ConfigError(f"{variable}: unknown key {key!r}{_suggest(key, fields)}")
    value: object = text
    if key.endswith("_hosts"):
        value = [part.strip() for part in text.split(",") if part.strip()]
    elif fields[key].type == list[str]:
        value = shlex.split(text)
    try:
        return msgspec.convert(value, fields[key].type, strict=False)
    except msgspec.ValidationError:
        raise _impossible(variable, fields[key].type, text) from None


def _rule_value(variable: str, text: str, key: str, thresholds: Mapping[str, RuleValue]) -> RuleValue:
    default = True if key == "enabled" else thresholds.get(key)
    if default is None:
        raise ConfigError(f"{variable}: unknown key {key!r}{_suggest(key, [*thresholds, 'enabled'])}")
    try:
        return msgspec.convert(text, type(default), strict=False)
    except msgspec.ValidationError:
        raise _impossible(variable, type(default), text) from None


def _impossible(where: str, wanted: Any, value: object) -> ConfigError:
    return ConfigError(f"{where} must be {allowed_values.in_words(wanted)}, got {allowed_values.shown(value)}")


def _check(tree: dict[str, Any], source: str, rules: RuleDefaults | None) -> Config:
    """The tree as a Config; the first thing wrong with it as a ConfigError that names `source` and the key's path."""
    known = [*SECTIONS, "rules"]
    for section, table in tree.items():
        if section not in known:
            raise ConfigError(f"{source}: unknown section [{section}]{_suggest(section, known)}")
        if not isinstance(table, dict):
            raise ConfigError(f"{source}: {section} is a section: write [{section}]")
        if section in SECTIONS:
            _check_section(table, section, source)
    _check_rules(tree.get("rules", {}), source, rules)
    return msgspec.convert(tree, Config)


def _check_section(table: dict[str, Any], section: str, source: str) -> None:
    fields = {field.name: field.type for field in msgspec.structs.fields(SECTIONS[section])}
    for key, value in table.items():
        if key not in fields:
            raise ConfigError(f"{source}: unknown key {section}.{key}{_suggest(key, fields)}")
        _check_value(f"{source}: {section}.{key}", fields[key], value)


def _check_value(where: str, wanted: Any, value: object) -> None:
    try:
        msgspec.convert(value, wanted)
    except msgspec.ValidationError:
        raise _impossible(where, wanted, value) from None


def _check_rules(given: dict[str, Any], source: str, rules: RuleDefaults | None) -> None:
    for rule, table in given.items():
        if not isinstance(table, dict):
            raise ConfigError(f"{source}: a rule is a section: write [rules.{rule}]")
        if rules is not None and rule not in rules:
            raise ConfigError(f"{source}: unknown rule [rules.{rule}]{_suggest(rule, rules)}")
        for key, value in table.items():
            where = f"{source}: rules.{rule}.{key}"
            _check_value(where, RuleValue, value)
            if rules is None:
                continue
            default = True if key == "enabled" else rules[rule].get(key)
            if default is None:
                raise ConfigError(f"{where}: unknown key{_suggest(key, [*rules[rule], 'enabled'])}")
            _check_value(where, type(default), value)


def _suggest(word: str, known: Any) -> str:
    import difflib  # noqa: PLC0415  # only somebody who mistyped pays for it

    close = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else f" (known: {', '.join(sorted(known))})"
