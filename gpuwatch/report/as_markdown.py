"""A report as Markdown, its pictures as SVG files beside it."""

from __future__ import annotations

from gpuwatch.report.blocks import Alert, Block, Page, Picture, Table, Text

#: What the page's style sheet gives an inline picture, a file of its own must carry: dark ink, which reads on white and grey.
_STYLE = """<style>text{font:10px sans-serif}.grid{stroke:#d9dee5}.tick{fill:#5b6675}.line{fill:none;stroke-width:1.5}
.band{opacity:.22}.s0{stroke:#2563c9}.b0,.l0{fill:#2563c9}.s1{stroke:#c2410c}.b1,.l1{fill:#c2410c}.s2{stroke:#15803d}
.b2,.l2{fill:#15803d}.s3{stroke:#7e22ce}.b3,.l3{fill:#7e22ce}.mark{stroke-dasharray:3 3;stroke:#0e7490}
.mark.warning{stroke:#b45309}.mark.critical{stroke:#c81e1e}.wild{fill:#c81e1e}</style>"""


def render(page: Page, folder: str) -> tuple[str, dict[str, str]]:
    """(the Markdown, {file name: SVG}); pictures are referred to as `folder`/file name."""
    files: dict[str, str] = {}
    lines = [f"# {_plain(page.title)}", "", _plain(page.subtitle), ""]
    lines += _table(Table(tuple(what for _, what in page.tiles), (tuple(value for value, _ in page.tiles),)))
    for section in page.sections:
        lines += ["", f"## {_plain(section.title)}", ""]
        for block in section.blocks:
            lines += _block(block, folder, files)
    return "\n".join(lines).rstrip() + "\n", files


def _block(block: Block, folder: str, files: dict[str, str]) -> list[str]:
    if isinstance(block, Text):
        return [_plain(block.text), ""]
    if isinstance(block, Picture):
        file = f"{block.name}.svg"
        head, _, rest = block.svg.partition(">")
        files[file] = f"{head}>{_STYLE}{rest}\n"
        return [f"**{_plain(block.caption)}**", "", f"![{_plain(block.caption)}]({folder}/{file})", ""]
    if isinstance(block, Alert):
        told = f"- **{block.severity}: {_plain(block.title)}**: {_plain(block.text)}"
        return [told, *([f"  *{_plain(block.action)}*"] if block.action else []), ""]
    return [*_table(block), ""]


def _table(table: Table) -> list[str]:
    rule = tuple("---:" if i in table.numeric else "---" for i in range(len(table.heading)))
    rows = [tuple(map(_plain, table.heading)), rule, *(tuple(map(_plain, row)) for row in table.rows)]
    return [f"| {' | '.join(row)} |" for row in rows]


def _plain(text: str) -> str:
    """Text whose markup, were it some, is shown as it stands: a layer may be called `<b>` or `a|b`."""
    for special in "\\`*_[]<>|#":
        text = text.replace(special, "\\" + special)
    return text.replace("\n", " ")
