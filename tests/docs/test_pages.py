"""The documents against the tree: links with their anchors, pictures, and every gpuwatch command line that they print."""

import importlib
import re
import shlex
from pathlib import Path

import click
import pytest

from gpuwatch.cli import COMMANDS

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(str(page.relative_to(ROOT)) for page in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def anchors(page):
    """The fragments that a page has, as GitHub makes them from its headings."""
    text = FENCE.sub("", page.read_text())
    found, counted = set(), {}
    for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        slug = re.sub(r"[^\w\- ]", "", words).replace(" ", "-")
        number = counted[slug] = counted.get(slug, -1) + 1
        found.add(f"{slug}-{number}" if number else slug)
    return found


def broken(page, text):
    """What the links of a page's text name that is not there."""
    for target in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", text)):
        if target.startswith("http"):
            continue
        path, _, fragment = target.partition("#")
        other = page.parent / path if path else page
        if not other.exists() or (fragment and other.suffix == ".md" and fragment not in anchors(other)):
            yield target


def impossible(line):
    """What a command line of the documents says that the command line does not know; None when it is right."""
    words = shlex.split(line, comments=True)[1:]
    words = words[: words.index("--")] if "--" in words else words
    if not words or words[0].startswith("-"):
        return None
    if words[0] not in COMMANDS:
        return f"no command {words[0]}"
    command = importlib.import_module(f"gpuwatch.cli.{words[0].replace('-', '_')}").command
    words = words[1:]
    if isinstance(command, click.Group) and words:
        command, words = command.commands.get(words[0]), words[1:]
        if command is None:
            return "no such subcommand"
    known = {name for parameter in command.params for name in [*parameter.opts, *parameter.secondary_opts]} | {"--help", "-h"}
    unknown = [word for word in words if word.startswith("-") and word.partition("=")[0] not in known]
    return f"no option {unknown[0]}" if unknown else None


def command_lines(text):
    """The gpuwatch command lines of the shell blocks, without what is behind a pipe or a `&&`."""
    for language, block in FENCE.findall(text):
        if language in {"sh", "bash", "console"}:
            for line in block.splitlines():
                for part in re.split(r"\||&&|;|>", line.removeprefix("$ ").partition(" #")[0]):
                    if re.match(r"\s*gpuwatch\s", part) and not re.search(r"\$\(|\bONE\b", part):
                        yield part.strip()


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    assert list(broken(ROOT / page, (ROOT / page).read_text())) == []


@pytest.mark.parametrize("page", PAGES)
def test_command_lines_are_understood(page):
    wrong = {line: why for line in command_lines((ROOT / page).read_text()) if (why := impossible(line))}
    assert wrong == {}


def test_what_is_wrong_is_seen():
    readme = ROOT / "README.md"
    assert list(broken(readme, "[a](docs/nowhere.md) [b](docs/tutorial.md#no-such) [c](docs/tutorial.md)")) == [
        "docs/nowhere.md",
        "docs/tutorial.md#no-such",
    ]
    assert list(command_lines("```sh\ngpuwatch runs --logdir x | cat\n$ gpuwatch top # live\n```")) == [
        "gpuwatch runs --logdir x",
        "gpuwatch top",
    ]
    assert impossible("gpuwatch stauts") == "no command stauts"
    assert impossible("gpuwatch run --loud -- python x.py --loud") == "no option --loud"
    assert impossible("gpuwatch rules import x") == "no such subcommand"
    assert impossible("gpuwatch run --every 10 -- python x.py --loud") is None


def test_the_index_names_every_page():
    index = (ROOT / "docs" / "README.md").read_text()
    pages = {str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md")}
    pages = {page for page in pages if not page.startswith("rules/")} - {"README.md"} | {"rules/README.md"}
    assert set(re.findall(r"\]\(([^)#]+\.md)\)", index)) >= pages
