"""Exit status and errors, the same for every command: 2 for wrong use, 1 for failure, one sentence (docs/how-it-works.md)."""

import re

import pytest

from gpuwatch.cli import COMMANDS
from tests.cli.conftest import ROOT

#: What reads the configuration, with arguments that are right.
READ_SETTINGS = {
    "run": ["--", "true"],
    "daemon": [],
    "runs": [],
    "status": [],
    "alerts": [],
    "top": ["--once"],
}
#: What is asked about a run or a rule that is not there.
NAMES_NOTHING = {"status": "zebra", "alerts": "zebra", "explain": "zebra"}


def one_sentence(result):
    assert result.stdout == ""
    assert re.fullmatch(r"Error: [^\n]+\n", result.stderr), result.stderr
    return result.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_a_flag_that_is_not_known_is_wrong_use(gpuwatch, command):
    result = gpuwatch(command, "--frobnicate")
    assert result.returncode == 2
    assert "--frobnicate" in one_sentence(result)


@pytest.mark.parametrize("command", READ_SETTINGS)
def test_a_setting_that_is_refused_is_wrong_use(gpuwatch, tmp_path, environ, command):
    (tmp_path / "gpuwatch.toml").write_text("[hooks]\nevery = 0\n")
    settings = {name: value for name, value in environ.items() if name != "GPUWATCH_SOCKET"}
    result = gpuwatch(command, *READ_SETTINGS[command], env=settings)
    assert result.returncode == 2
    told = "Error: gpuwatch.toml: hooks.every must be a whole number from 1 to 1000000, got 0\n"
    assert one_sentence(result) == told


@pytest.mark.parametrize("command", NAMES_NOTHING)
def test_a_name_that_is_not_there_is_wrong_use(gpuwatch, recorder, command):
    recorder.run("digits")
    result = gpuwatch(command, NAMES_NOTHING[command])
    assert result.returncode == 2
    assert "'zebra'" in one_sentence(result)


@pytest.mark.parametrize("arguments", [["run"], ["run", "--every", "0", "--", "true"], ["statsu"], ["rules", "xprot"]])
def test_a_line_that_is_not_understood_is_wrong_use(gpuwatch, arguments):
    result = gpuwatch(*arguments)
    assert result.returncode == 2
    one_sentence(result)


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "--logdir", "file/runs", "--", "true"],
        ["daemon", "--logdir", "file/runs"],
        ["demo", "--logdir", "file/runs"],
        ["dashboards", "export", "file/boards"],
        ["rules", "export", "file/rules"],
        ["status", "--logdir", "empty"],
    ],
)
def test_what_cannot_be_done_is_a_failure(gpuwatch, tmp_path, arguments):
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    result = gpuwatch(*arguments)
    assert result.returncode == 1
    one_sentence(result)


def test_the_table_in_the_documents():
    table = (ROOT / "docs" / "how-it-works.md").read_text().partition("## Exit status")[2].partition("\n## ")[0]
    assert re.findall(r"^\| (\d+) \|", table, re.MULTILINE) == ["0", "1", "2", "126", "127", "130"]
