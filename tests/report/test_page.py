"""The whole page, of a run that a real State recorded: as HTML and as Markdown, with hostile names."""

import html.parser
import math
import time

import pytest
from gpuwatch_hooks import wire

from gpuwatch.advice.roadmap import roadmap
from gpuwatch.advice.station import Subject
from gpuwatch.history import past
from gpuwatch.history.measures import measure
from gpuwatch.report import as_html, as_markdown, content
from gpuwatch.report.blocks import Alert, Picture, Table
from gpuwatch.state import summary
from gpuwatch.state.findings import Finding
from gpuwatch.state.records import Names, Scalar
from gpuwatch.state.store import State
from tests.state.recorded import hello, identity, slots, step_payload, tensors_payload

HOSTILE = "<img src=x onerror=alert(1)>|`a`"


@pytest.fixture
def page(tmp_path):
    state = State(str(tmp_path / "runs"))
    run = state.open_run(hello(program="train", torch="2.13.0", device="cpu"), identity())
    payloads = []
    for step in range(1, 41):
        payloads.append((wire.KIND_TENSORS, tensors_payload(step, [float(step), 1e-3])))
        fields = {"loss": math.inf if step == 20 else 1 / step, "step_seconds": 0.5, "forward_seconds": 0.5, "grad_norm": 1.0}
        payloads.append((wire.KIND_STEP, step_payload(step, fields)))
    state.ring(run, slots(payloads))
    state.control(run, 1, Names("tensor", 1, 0, (HOSTILE, "b.weight"), (3, 4)))
    state.control(run, 2, tuple(Scalar(HOSTILE, n, 0.1 * n, n) for n in range(5)))
    now = time.time()
    found = Finding("nonfinite_loss", "critical", 20, 20, 20, "loss", math.inf, 0.0, HOSTILE, "Look.", layer=HOSTILE, time=now)
    state.find(run, found)
    state.find(run, Finding(**{**{f: getattr(found, f) for f in found.__struct_fields__}, "state": "closed", "last_step": 21}))
    state.save(run)
    state.close()
    directory = tmp_path / "runs" / "digits"
    recorded = past.read(directory)
    measured = measure(recorded)
    known = summary.decode((directory / "run.json").read_bytes())
    return content.page([known], ["finished"], recorded, measured, roadmap(Subject(recorded, measured, {0: 0.5}, 1, "cpu")))


def blocks(page, kind):
    return [block for section in page.sections for block in section.blocks if isinstance(block, kind)]


def test_the_page_has_what_was_recorded(page):
    titles = [section.title for section in page.sections]
    assert titles == ["Findings", "Timeline", "Logged by the job", "Layers", "Speed", "What next", "About this run"]
    assert ("40", "steps") in page.tiles
    assert ("1", "finding") in page.tiles
    alert, *roadmap_of_five = blocks(page, Alert)
    assert [station.severity for station in roadmap_of_five] == ["next", "unknown", "idle", "later", "later"]
    assert alert.title.endswith("from step 20 to 21"), "one entry for what was opened and closed"
    layers = next(table for table in blocks(page, Table) if table.heading[0] == "layer")
    assert [(row[0], row[1]) for row in layers.rows] == [(HOSTILE, "40"), ("b.weight", "0.001")]
    assert {"loss", "gradient-norm", "learning-rate", "layers", "logged-0"} <= {
        picture.name for picture in blocks(page, Picture)
    }


class Elements(html.parser.HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.seen, self.attributes, self.open = set(), set(), []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.seen.add(tag)
        self.attributes |= {name for name, _ in attrs}
        if tag not in {"meta", "br", "img"}:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_html_is_whole_and_carries_no_script_whatever_names_are_called(page):
    text = as_html.render(page)
    elements = Elements(text)
    assert elements.open == []
    assert not {"script", "img", "iframe", "link"} & elements.seen
    assert not {name for name in elements.attributes if name.startswith("on") or name == "src"}
    assert "&lt;img src=x onerror=alert(1)&gt;" in text
    assert "http://" not in text.replace("http://www.w3.org/2000/svg", "")


def test_the_markdown_has_its_pictures_beside_it(page):
    text, files = as_markdown.render(page, "digits_pictures")
    for name, svg in files.items():
        assert f"(digits_pictures/{name})" in text
        assert svg.startswith("<svg ")
        assert "<style>" in svg
    assert "<img" not in text.replace("\\<img", "")
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert all(line.endswith("|") for line in tables)
