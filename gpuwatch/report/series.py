"""Step fields as line charts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from gpuwatch.history.past import Past
from gpuwatch.report.blocks import Picture
from gpuwatch.report.chart import Line, Mark, line_chart


def charts(past: Past, wanted: Mapping[str, tuple[tuple[str, str], ...]], marks: Sequence[Mark]) -> Iterator[Picture]:
    """`wanted`: title -> (name in the legend, one of wire.STEP_FIELDS) of each line. What is 0 throughout is not drawn."""
    for title, fields in wanted.items():
        lines = [Line(name, *past.series(field)) for name, field in fields if any(past.values(field))]
        if svg := line_chart(title, lines, marks):
            yield Picture(title.split(" (")[0].lower().replace(" ", "-").replace("/", "per"), title, svg)
