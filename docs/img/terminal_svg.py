"""What a command printed on a terminal, as an SVG that needs no font, script or picture from anywhere.

FORCE_COLOR=1 COLUMNS=110 gpuwatch status RUN | python docs/img/terminal_svg.py "gpuwatch status" > docs/img/status.svg
"""

from __future__ import annotations

import html
import re
import sys

CELL_WIDTH, LINE_HEIGHT, MARGIN, BAR = 8.4, 18, 16, 30
COLOURS = {31: "#ff7b72", 32: "#56d364", 33: "#e3b341", 36: "#76e3ea"}
PLAIN, DIM, PAPER = "#e6edf3", "#8b949e", "#0d1117"
_ESCAPE = re.compile(r"\x1b\[([0-9;]*)m")


def spans(line: str) -> list[tuple[str, str, bool]]:
    """The stretches of one line: (text, colour, bold)."""
    found, colour, bold, position = [], PLAIN, False, 0
    for match in [*_ESCAPE.finditer(line), None]:
        text = line[position : match.start() if match else len(line)]
        if text:
            found.append((text, colour, bold))
        for code in (match.group(1) or "0").split(";") if match else []:
            if code == "0":
                colour, bold = PLAIN, False
            elif code == "1":
                bold = True
            elif code == "2":
                colour = DIM
            else:
                colour = COLOURS.get(int(code), colour)
        position = match.end() if match else position
    return found


def svg(text: str, title: str) -> str:
    lines = text.rstrip("\n").split("\n")
    columns = max(len(_ESCAPE.sub("", line)) for line in lines)
    width, height = columns * CELL_WIDTH + 2 * MARGIN, len(lines) * LINE_HEIGHT + BAR + MARGIN
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height}" width="{width:.0f}" height="{height}">',
        f'<rect width="100%" height="100%" rx="8" fill="{PAPER}"/>',
        '<g font-family="ui-monospace,SFMono-Regular,Menlo,DejaVu Sans Mono,Consolas,monospace" font-size="14">',
        f'<text x="{MARGIN}" y="20" fill="{DIM}">$ {html.escape(title)}</text>',
    ]
    for row, line in enumerate(lines):
        column = 0
        for stretch, colour, bold in spans(line):
            text = stretch.strip()
            if text:
                # As wide as its cells whatever the font, or columns would not line up.
                place = column + len(stretch) - len(stretch.lstrip())
                at = f'x="{MARGIN + place * CELL_WIDTH:.1f}" y="{BAR + (row + 1) * LINE_HEIGHT - 4}"'
                size = f'textLength="{len(text) * CELL_WIDTH:.1f}" lengthAdjust="spacingAndGlyphs"'
                weight = ' font-weight="bold"' if bold else ""
                shown = html.escape(text).replace(" ", "\u00a0")  # SVG folds plain spaces
                parts.append(f'<text {at} {size} fill="{colour}"{weight}>{shown}</text>')
            column += len(stretch)
    return "\n".join([*parts, "</g>", "</svg>", ""])


if __name__ == "__main__":
    sys.stdout.write(svg(sys.stdin.read(), sys.argv[1]))
