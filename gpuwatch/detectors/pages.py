"""A rule's page: its module's docstring and its thresholds, for `gpuwatch explain` and docs/rules/."""

from __future__ import annotations

import inspect
import sys
from typing import Any

import msgspec

from gpuwatch.detectors.registry import RULES
from gpuwatch.detectors.rule import AnyRule, Thresholds


def title(rule: type[AnyRule[Any]]) -> str:
    """What the rule says, in one sentence."""
    return _text(rule).partition("\n")[0]


def page(rule: type[AnyRule[Any]]) -> str:
    """The rule's page in Markdown."""
    first, _, rest = _text(rule).partition("\n")
    lines = [f"# {rule.name}", "", first, rest.rstrip(), "", "## Evidence and thresholds", "", f"Statistic: {rule.statistic}."]
    thresholds = rule.thresholds_type()
    if thresholds.__struct_fields__:
        lines += ["", f"| `[rules.{rule.name}]` | default | meaning |", "|---|---|---|"]
    for field in msgspec.inspect.type_info(rule.thresholds_type).fields:  # type: ignore[attr-defined]
        meaning = (
            (field.type.extra_json_schema or {}).get("description", "") if hasattr(field.type, "extra_json_schema") else ""
        )
        lines.append(f"| `{field.encode_name}` | {getattr(thresholds, field.name)} | {meaning} |")
    lines += ["", f"`[rules.{rule.name}] enabled = false` switches it off.", ""]
    return "\n".join(lines)


def index() -> str:
    """The table of all rules in Markdown."""
    rows = [f"| [{rule.name}]({rule.name}.md) | {rule.severity} | {title(rule)} |" for rule in RULES]
    return "\n".join(["# Rules", "", "| rule | severity | what it says |", "|---|---|---|", *rows, ""])


def _meanings(thresholds: type[Thresholds]) -> dict[str, str]:
    """Field -> the description that its annotation carries."""
    schema = msgspec.json.schema(thresholds)
    (described,) = schema["$defs"].values()
    return {name: field["description"] for name, field in described.get("properties", {}).items()}


def _text(rule: type[AnyRule[Any]]) -> str:
    return inspect.cleandoc(sys.modules[rule.__module__].__doc__ or rule.statistic)
