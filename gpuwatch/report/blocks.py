"""What a report is made of, whatever it is written as."""

from __future__ import annotations

import msgspec


class Text(msgspec.Struct, frozen=True):
    """A paragraph of plain text."""

    text: str


class Table(msgspec.Struct, frozen=True):
    """Rows of plain text under a heading; `numeric` columns are set to the right."""

    heading: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numeric: frozenset[int] = frozenset()


class Picture(msgspec.Struct, frozen=True):
    """An SVG document, its caption, and a name for the file that it may become. Wide ones take a row of their own."""

    name: str
    caption: str
    svg: str
    wide: bool = False


class Alert(msgspec.Struct, frozen=True):
    """One finding, or one station of the roadmap: what, where, and what to do."""

    severity: str  # or the station's standing
    title: str
    text: str
    action: str


Block = Text | Table | Picture | Alert


class Section(msgspec.Struct, frozen=True):
    title: str
    blocks: tuple[Block, ...]


class Page(msgspec.Struct, frozen=True):
    """`tiles`: (value, what it is), the handful of numbers that a reader looks for first."""

    title: str
    subtitle: str
    tiles: tuple[tuple[str, str], ...]
    sections: tuple[Section, ...]
