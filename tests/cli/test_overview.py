"""The command as a whole: help, version, completion, wrong use; and that asking for help loads next to nothing."""

import importlib
import json
import re
import subprocess
import sys

import click
import pytest

import gpuwatch as package
from gpuwatch.cli import COMMANDS
from tests.cli.conftest import ROOT

LOADED = """
import json, sys
from gpuwatch.cli import main
sys.argv = json.loads(sys.argv[1])
try:
    main()
finally:
    print(json.dumps(sorted(sys.modules)), file=sys.stderr)
"""
HEAVY = {"torch", "numpy", "prometheus_client", "tensorboard", "google.protobuf", "pynvml", "msgspec", "psutil", "http.server"}


@pytest.mark.parametrize(
    ("arguments", "may_load"),
    [(["--help"], set()), (["--version"], set()), (["run", "--help"], {"msgspec"}), (["runs"], {"msgspec"})],
)
def test_nothing_heavy_is_loaded_for_a_short_answer(tmp_path, environ, arguments, may_load):
    command = [sys.executable, "-c", LOADED, json.dumps(["gpuwatch", *arguments])]
    result = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=60, check=True)
    loaded = set(json.loads(result.stderr.splitlines()[-1]))
    assert not (loaded & HEAVY) - may_load
    assert "click" in loaded


def test_the_overview_names_every_command_in_its_own_words(gpuwatch):
    out = gpuwatch("--help").stdout
    for name, summary in COMMANDS.items():
        command = importlib.import_module(f"gpuwatch.cli.{name.replace('-', '_')}").command
        assert isinstance(command, click.Command)
        assert command.short_help == summary
        assert f"  {name:<{max(map(len, COMMANDS))}}  {summary}" in out
    assert "_GPUWATCH_COMPLETE=bash_source" in out


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself_with_an_example(gpuwatch, name):
    result = gpuwatch(name, "--help")
    assert result.returncode == 0
    assert "Example" in result.stdout
    assert f"  gpuwatch {name}" in result.stdout


def test_version(gpuwatch):
    assert gpuwatch("--version").stdout == f"gpuwatch, version {package.__version__}\n"


def test_the_readme_names_every_command_and_no_other():
    table = re.findall(r"^\| `gpuwatch (\w[\w-]*)[^|]*` \|", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert sorted(table) == sorted(COMMANDS)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_shells_get_their_completion(gpuwatch, environ, shell):
    out = gpuwatch(env={**environ, "_GPUWATCH_COMPLETE": f"{shell}_source"}).stdout
    assert "_GPUWATCH_COMPLETE" in out
    assert "gpuwatch" in out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["statsu"], "Error: There is no command 'statsu'; did you mean 'status'?"),
        (["frobnicate"], "Error: There is no command 'frobnicate'; gpuwatch --help lists them."),
        (["runs", "--jsno"], "Error: No such option '--jsno'. Did you mean '--json'?"),
        (["run", "--every", "0", "--", "true"], "Error: Invalid value for '--every': 0 is not in the range 1<=x<=1000000."),
        (["demo", "--seconds", "-1"], "Error: Invalid value for '--seconds': -1.0 is not in the range 6.0<=x<=3600."),
    ],
)
def test_wrong_use_is_one_sentence_and_exit_2(gpuwatch, arguments, sentence):
    result = gpuwatch(*arguments)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.splitlines()[-1] == sentence
    assert "Traceback" not in result.stderr


def test_a_reader_that_goes_away_is_no_traceback(tmp_path, environ):
    script = f"{sys.executable} -m gpuwatch --help | true"
    result = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=60, check=True
    )
    assert "Traceback" not in result.stderr
