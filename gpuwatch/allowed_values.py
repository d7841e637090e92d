"""What a setting may be, in words: for the sentence that refuses another value."""

from __future__ import annotations

import json
from typing import Any

from msgspec import inspect

_PLAIN = {
    inspect.BoolType: "true or false",
    inspect.ListType: "a list of texts",
    inspect.UnionType: "true, false, a number or a text",
}


def in_words(annotation: Any) -> str:
    """The values that a type takes: "a whole number from 1 to 65536", "true or false", "one of text, json"."""
    return _words(inspect.type_info(annotation))


def shown(value: object) -> str:
    """A value as it stands in a TOML file, or nearly."""
    return json.dumps(value, default=str, ensure_ascii=False)


def _words(kind: inspect.Type) -> str:
    if isinstance(kind, inspect.Metadata):
        return _words(kind.type)
    if isinstance(kind, inspect.IntType):
        return f"a whole number{_bounds(kind)}"
    if isinstance(kind, inspect.FloatType):
        return f"a number{_bounds(kind)}"
    if isinstance(kind, inspect.LiteralType):
        return f"one of {', '.join(map(str, kind.values))}"
    return _PLAIN.get(type(kind), "a text")


def _bounds(kind: inspect.IntType | inspect.FloatType) -> str:
    if kind.gt is not None:
        low, high = f" above {_number(kind.gt)}", " and up to "
    else:
        low, high = ("" if kind.ge is None else f" from {_number(kind.ge)}"), " to "
    return low + ("" if kind.le is None else high + _number(kind.le)) + ("" if kind.le is not None or not low else " on")


def _number(value: float) -> str:
    return f"{value:.0f}" if value == int(value) else f"{value:g}"
