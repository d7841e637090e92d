"""A report as one HTML file: no script, nothing loaded from elsewhere, light and dark, printable."""

from __future__ import annotations

import html
import itertools
from pathlib import Path

from gpuwatch.report.blocks import Alert, Block, Page, Picture, Section, Table, Text

_STYLE = Path(__file__).with_name("style.css")


def render(page: Page) -> str:
    """The file's text. Every text of the page is escaped: names of runs and layers are whatever a job called them."""
    tiles = "".join(f"<li><b>{html.escape(value)}</b><span>{html.escape(what)}</span></li>" for value, what in page.tiles)
    body = "".join(map(_section, page.sections))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">"
        f"<title>{html.escape(page.title)}</title><style>{_STYLE.read_text(encoding='utf-8')}</style></head><body><main>"
        f'<header><h1>{html.escape(page.title)}</h1><p>{html.escape(page.subtitle)}</p><ul class="tiles">{tiles}</ul></header>'
        f"{body}</main></body></html>\n"
    )


def _section(section: Section) -> str:
    parts = []
    for small, group in itertools.groupby(section.blocks, key=lambda block: isinstance(block, Picture) and not block.wide):
        drawn = "".join(map(_block, group))
        parts.append(f'<div class="grid-of-charts">{drawn}</div>' if small else drawn)
    return f"<section><h2>{html.escape(section.title)}</h2>{''.join(parts)}</section>"


def _block(block: Block) -> str:
    if isinstance(block, Text):
        return f"<p>{html.escape(block.text)}</p>"
    if isinstance(block, Picture):
        wide = ' class="wide"' if block.wide else ""
        return f"<figure{wide}><figcaption>{html.escape(block.caption)}</figcaption>{block.svg}</figure>"
    if isinstance(block, Alert):
        action = f'<p class="action">{html.escape(block.action)}</p>' if block.action else ""
        return (
            f'<article class="alert {html.escape(block.severity)}"><h3><span>{html.escape(block.severity)}</span> '
            f"{html.escape(block.title)}</h3><p>{html.escape(block.text)}</p>"
            f"{action}</article>"
        )
    return _table(block)


def _table(table: Table) -> str:
    def cells(tag: str, row: tuple[str, ...]) -> str:
        return "".join(
            f"<{tag}{' class=n' if i in table.numeric else ''}>{html.escape(cell)}</{tag}>" for i, cell in enumerate(row)
        )

    rows = "".join(f"<tr>{cells('td', row)}</tr>" for row in table.rows)
    return f'<div class="scroll"><table><thead><tr>{cells("th", table.heading)}</tr></thead><tbody>{rows}</tbody></table></div>'
