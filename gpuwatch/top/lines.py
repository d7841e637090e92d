"""Lines of text with styles, which a terminal and a Textual widget can both show."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable


class Segment(NamedTuple):
    """A stretch of one style: words of "bold", "dim", "reverse" and one of a terminal's eight colours; "" for plain text."""

    text: str
    style: str = ""


Line = list[Segment]


def plain(line: Iterable[Segment]) -> str:
    return "".join(segment.text for segment in line)


def width_of(line: Iterable[Segment]) -> int:
    return sum(len(segment.text) for segment in line)


def cut(line: Iterable[Segment], width: int) -> Line:
    """The line in `width` cells at most; one that is longer ends in an ellipsis."""
    kept: Line = []
    left = width
    for segment in line:
        if len(segment.text) > left:
            text = segment.text[: max(0, left - 1)] + "…" if left else ""
            return [*kept, Segment(text, segment.style)]
        kept.append(segment)
        left -= len(segment.text)
    return kept


def padded(line: Line, width: int) -> Line:
    """The line in exactly `width` cells."""
    kept = cut(line, width)
    return [*kept, Segment(" " * (width - width_of(kept)))]


def fitted(parts: Iterable[tuple[int, Line]], width: int, gap: str = "  ") -> Line:
    """Parts side by side, in their order. While they are too wide, the one with the largest number is left out."""
    kept = [part for part in parts if part[1]]
    while len(kept) > 1 and sum(width_of(line) for _, line in kept) + len(gap) * (len(kept) - 1) > width:
        kept.remove(max(kept, key=lambda part: part[0]))
    joined: Line = []
    for _, line in kept:
        joined += [Segment(gap), *line] if joined else line
    return cut(joined, width)
