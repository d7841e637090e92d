"""Textual's export of a screen (SVG) as text that can be compared: what stands where, and in which of the screen's colours."""

import html
import re

#: The export's cell is this wide.
_CELL = 12.2
_TEXT = re.compile(
    r'<text class="terminal-\d+-(r\d+)" x="([\d.]+)"[^>]*clip-path="url\(#terminal-\d+-line-(\d+)\)">([^<]*)</text>'
)
_STYLE = re.compile(r"\.terminal-\d+-(r\d+) \{ ([^}]*) \}")


def painted(svg, width, height):
    """Each row of the screen, and under it a letter for the style of each cell: a is the most used one, which is not written.

    Letters are given by how often a style is used, so that the palette of a Textual version is none of our business.
    """
    cells = [[(" ", "")] * width for _ in range(height)]
    used = {}
    for style, x, row, text in _TEXT.findall(svg):
        for offset, character in enumerate(html.unescape(text).replace("\xa0", " ")):
            column = round(float(x) / _CELL) + offset
            if column < width:
                cells[int(row)][column] = (character, style)
                used[style] = used.get(style, 0) + (character != " ")
    look = dict(_STYLE.findall(svg))
    names = {}
    for style in sorted(used, key=lambda style: (-used[style], look[style])):
        names.setdefault(look[style], chr(ord("a") + len(names)))
    lines = []
    for row in cells:
        text = "".join(character for character, _ in row).rstrip()
        letters = "".join(names[look[style]] if style and character != " " else " " for character, style in row)
        lines += [f"|{text}", f" {letters.replace('a', ' ')}".rstrip()]
    return "\n".join(line for line in lines if line) + "\n"
