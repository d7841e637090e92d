"""Text that is read or written names its encoding: Python's own choice is that of the locale, ASCII on a bare node.

A name of a process or a file may be no UTF-8 at all, so what is read of another process says what becomes of such bytes.
"""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted(path for folder in ("gpuwatch", "hooks") for path in (ROOT / folder).rglob("*.py"))
OPENS = {"open", "fdopen", "read_text", "write_text"}


def without_encoding(source):
    """Line numbers of calls that leave the encoding of text to the locale."""
    found = []
    for call in ast.walk(ast.parse(source)):
        if not isinstance(call, ast.Call):
            continue
        function = call.func
        name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
        owner = getattr(getattr(function, "value", None), "id", "")
        keywords = {keyword.arg for keyword in call.keywords}
        given = [*call.args, *(keyword.value for keyword in call.keywords if keyword.arg == "mode")]
        binary = any(isinstance(value, ast.Constant) and value.value in ("rb", "wb", "ab", "r+b", "xb") for value in given)
        opens = name in OPENS and not (name == "open" and isinstance(function, ast.Attribute) and owner != "gzip")
        if (opens and not binary and "encoding" not in keywords) or (
            "text" in keywords and "encoding" not in keywords and owner == "subprocess"
        ):
            found.append(call.lineno)
    return found


def test_text_has_an_encoding():
    found = {str(path.relative_to(ROOT)): without_encoding(path.read_text(encoding="utf-8")) for path in SOURCES}
    assert len(found) > 200
    assert {path: lines for path, lines in found.items() if lines} == {}


@pytest.mark.parametrize(
    ("line", "count"),
    [
        ("open('f')", 1),
        ("open('f', 'rb')", 0),
        ("open('f', mode='wb')", 0),
        ("open('f', encoding='ascii')", 0),
        ("os.open('f', 0)", 0),
        ("Path('f').read_text()", 1),
        ("Path('f').write_text(x, encoding='utf-8')", 0),
        ("os.fdopen(3, 'w')", 1),
        ("subprocess.run(['a'], text=True)", 1),
        ("subprocess.run(['a'], encoding='utf-8')", 0),
    ],
)
def test_it_sees_what_has_none(line, count):
    assert len(without_encoding(line)) == count
