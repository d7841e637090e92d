"""The pictures show what was recorded: peaks survive thinning, what is not finite is marked, a cell has its layer's colour."""

import base64
import math
import random
import re
import xml.etree.ElementTree as ET
import zlib

import pytest

from gpuwatch.report.chart import Line, Mark, line_chart
from gpuwatch.report.heat_map import heat_map
from gpuwatch.report.thinned import thin

SVG = "{http://www.w3.org/2000/svg}"


def points(svg, shape):
    """[(x, y)] of the first element of this shape."""
    found = ET.fromstring(svg).find(f".//{SVG}{shape}")
    return [tuple(map(float, pair.split(","))) for pair in found.get("points").split()]


def test_thinning_keeps_extremes_and_means_of_all_points():
    noise = random.Random(1)
    values = [noise.random() for _ in range(10_000)]
    values[7321], values[12] = 1e9, math.nan
    stretches, wild = thin(range(1, 10_001), values, 200)
    assert len(stretches) == 200
    assert wild == [13]
    assert max(s.largest for s in stretches) == 1e9
    for number, stretch in enumerate(stretches):
        bin_of = [v for v in values[50 * number : 50 * (number + 1)] if math.isfinite(v)]
        assert stretch.mean == pytest.approx(math.fsum(bin_of) / len(bin_of), rel=1e-12)
        assert (stretch.least, stretch.largest) == (min(bin_of), max(bin_of))


@pytest.mark.parametrize(("steps", "values"), [([], []), ([5], [1.0]), ([1, 2], [math.nan, math.inf]), (range(3), [0.0] * 3)])
def test_little_or_nothing_to_draw(steps, values):
    svg = line_chart("loss", [Line("loss", steps, values)])
    assert (svg == "") == (not any(map(math.isfinite, values)))
    if svg:
        ET.fromstring(svg)


def test_a_line_rises_where_its_values_rise():
    drawn = points(line_chart("loss", [Line("loss", range(1, 101), [0.5 * n for n in range(100)])]), "polyline")
    assert [x for x, _ in drawn] == sorted(x for x, _ in drawn)
    assert [y for _, y in drawn] == sorted((y for _, y in drawn), reverse=True), "SVG counts downwards"


def test_two_decades_are_drawn_by_their_logarithm():
    drawn = points(line_chart("loss", [Line("loss", [1, 2, 3], [1.0, 100.0, 10_000.0])]), "polyline")
    (_, low), (_, middle), (_, high) = drawn
    assert low - middle == pytest.approx(middle - high, abs=0.2)


def test_what_is_not_finite_and_what_was_found_are_marked():
    svg = line_chart(
        "a<b", [Line("loss", [1, 2, 3], [1.0, math.inf, 2.0])], [Mark(2, "critical", "<spike>"), Mark(99, "info", "x")]
    )
    tree = ET.fromstring(svg)
    assert len(tree.findall(f".//{SVG}path[@class='wild']")) == 1
    (mark,) = tree.findall(f".//{SVG}line[@class='mark critical']")
    assert mark.find(f"{SVG}title").text == "<spike> (step 2)"
    assert "mark info" not in svg, "outside of the picture"


def pixels(svg, width):
    """Rows of RGB triples of the PNG inside."""
    data = base64.b64decode(re.search(r"base64,([^\"]+)", svg)[1])
    raw = zlib.decompress(b"".join(part for kind, part in chunks(data) if kind == b"IDAT"))
    return [[tuple(row[i : i + 3]) for i in range(1, 3 * width, 3)] for row in zip(*[iter(raw)] * (3 * width + 1), strict=True)]


def chunks(data):
    place = 8
    while place < len(data):
        size = int.from_bytes(data[place : place + 4], "big")
        yield data[place + 4 : place + 8], data[place + 8 : place + 8 + size]
        place += size + 12


def test_each_cell_has_its_values_colour():
    svg = heat_map(["a.weight", "<b>"], [1, 2, 3], [[1e-3, 1.0, math.inf], [0.0, math.nan, 1e-3]])
    ET.fromstring(svg)
    (dark, bright, wild), (none, missing, again) = pixels(svg, 3)
    assert sum(bright) > sum(dark)
    assert wild == (255, 0, 0)
    assert none == missing == (128, 128, 128)
    assert dark == again
    assert "&lt;b&gt;" in svg
    assert heat_map(["a"], [1], [[0.0]]) == ""
