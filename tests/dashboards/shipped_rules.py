"""The shipped Prometheus rules as the tests read them."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

FOLDER = Path(__file__).parents[2] / "dashboards" / "rules"
FILES = sorted(FOLDER.glob("*.yml"))
TESTS = sorted((FOLDER / "tests").glob("*.yml"))


def rules(files=None):
    """Every rule of these files (all): dicts as in the YAML, with "file" and "group" besides."""
    for path in files or FILES:
        for group in yaml.safe_load(path.read_text())["groups"]:
            for rule in group["rules"]:
                yield {**rule, "file": path.name, "group": group["name"]}


ALERTS = {rule["alert"]: rule for rule in rules() if "alert" in rule}
RECORDS = {rule["record"]: rule for rule in rules() if "record" in rule}


def promtool(*arguments, folder=FOLDER):
    """Runs promtool; a CompletedProcess with text."""
    if shutil.which("promtool") is None:
        pytest.skip("needs promtool (apt-get install prometheus)")
    command = ["promtool", *map(str, arguments)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=100, check=False)


def without_strings(expression):
    return re.sub(r'"(?:[^"\\]|\\.)*"', '""', expression)


def metrics(expression):
    """The names of series in a PromQL expression that are gpuwatch's, raw or recorded."""
    return set(re.findall(r"(?<![\w:])(?:[a-z]+:)?gpuwatch_[\w:]+", without_strings(expression)))


def labels(expression):
    """The labels that a PromQL expression names: in matchers, by, without, on, ignoring, group_left and group_right."""
    plain = without_strings(expression)
    found = set()
    for body in re.findall(r"\{([^}]*)\}", plain):
        found |= set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", body))
    for body in re.findall(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)", plain):
        found |= {name.strip() for name in body.split(",") if name.strip()}
    return found
