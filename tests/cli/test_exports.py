"""`gpuwatch dashboards export` and `gpuwatch rules export`: whole, usable where they are put, over nobody's own files."""

import json
import re
import shutil
import subprocess

import pytest
import yaml

from tests.cli.conftest import ROOT


def tree(folder):
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def check(*command):
    if shutil.which(command[0]) is None:
        pytest.skip(f"needs {command[0]}")
    result = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_dashboards_with_their_provisioning(gpuwatch, tmp_path):
    result = gpuwatch("dashboards", "export", "grafana", "--prometheus", "http://prometheus:9090")
    assert result.returncode == 0, result.stderr
    written = tree(tmp_path / "grafana")
    assert set(result.stdout.splitlines()) == {f"grafana/{name}" for name in written}
    boards = {path.name: path.read_text() for path in (ROOT / "dashboards" / "grafana").glob("*.json")}
    assert {name.removeprefix("dashboards/gpuwatch/"): text for name, text in written.items() if "json" in name} == boards
    (provider,) = yaml.safe_load(written["provisioning/dashboards/gpuwatch.yaml"])["providers"]
    assert provider["type"] == "file"
    assert provider["options"]["path"] == str(tmp_path / "grafana" / "dashboards" / "gpuwatch")
    (source,) = yaml.safe_load(written["provisioning/datasources/gpuwatch.yaml"])["datasources"]
    assert (source["type"], source["access"], source["url"]) == ("prometheus", "proxy", "http://prometheus:9090")


def test_the_rules_with_what_they_refer_to(gpuwatch, tmp_path):
    assert gpuwatch("rules", "export", "out").returncode == 0
    out = tmp_path / "out"
    for name in ("daemon", "gpu", "recording", "training"):
        assert (out / f"rules/gpuwatch-{name}.yml").read_text() == (ROOT / f"dashboards/rules/{name}.yml").read_text()
    check("promtool", "check", "rules", "--lint-fatal", *sorted((out / "rules").iterdir()))
    for link in re.findall(r'runbook_url: "?(\S+?)"?\n', "".join(path.read_text() for path in (out / "rules").iterdir())):
        path = link.partition("#")[0].replace("{{", "").strip()
        if "$labels" not in link:
            assert (out / path).is_file(), link
    for page in (ROOT / "docs" / "rules").glob("*.md"):
        assert (out / "docs" / "rules" / page.name).read_text() == page.read_text()
    shutil.copytree(out / "rules", out / "examples" / "rules")
    check("promtool", "check", "config", out / "examples" / "prometheus.yml")
    check("amtool", "check-config", out / "examples" / "alertmanager.yml")


def test_runbooks_under_an_address(gpuwatch, tmp_path):
    assert gpuwatch("rules", "export", ".", "--docs-url", "https://wiki.example.org/gpuwatch/").returncode == 0
    links = set()
    for path in (tmp_path / "rules").glob("*.yml"):
        for group in yaml.safe_load(path.read_text())["groups"]:
            links |= {rule["annotations"]["runbook_url"] for rule in group["rules"] if "alert" in rule}
    assert "https://wiki.example.org/gpuwatch/docs/alerting.md#gpuwatchdown" in links
    assert "https://wiki.example.org/gpuwatch/docs/rules/{{ $labels.rule }}.md" in links
    assert all(link.startswith("https://wiki.example.org/gpuwatch/docs/") for link in links)


@pytest.mark.parametrize("arguments", [["rules", "export", "x", "--docs-url"], ["dashboards", "export", "x", "--prometheus"]])
@pytest.mark.parametrize("url", ["wiki", 'http://a"b', "http://a: b"])
def test_what_is_no_address_is_refused(gpuwatch, tmp_path, arguments, url):
    result = gpuwatch(*arguments, url)
    assert result.returncode == 2
    assert result.stderr.endswith("is not an address such as https://host/path\n")
    assert not (tmp_path / "x").exists()


def test_files_of_others_are_not_replaced_unasked(gpuwatch, tmp_path):
    assert gpuwatch("dashboards", "export", ".").returncode == 0
    assert gpuwatch("dashboards", "export", ".").returncode == 0, "the same again"
    own = tmp_path / "provisioning" / "datasources" / "gpuwatch.yaml"
    own.write_text("mine")
    board = tmp_path / "dashboards" / "gpuwatch" / "gpuwatch-run.json"
    board.unlink()
    result = gpuwatch("dashboards", "export", ".")
    assert (result.returncode, result.stdout) == (1, "")
    assert "nothing was written: provisioning/datasources/gpuwatch.yaml" in result.stderr
    assert own.read_text() == "mine"
    assert not board.exists()
    assert gpuwatch("dashboards", "export", ".", "--force").returncode == 0
    assert json.loads(board.read_text())["uid"] == "gpuwatch-run"
    assert own.read_text() != "mine"


def test_a_folder_that_cannot_be_written(gpuwatch):
    result = gpuwatch("rules", "export", "/proc/gpuwatch")
    assert result.returncode == 1
    assert result.stderr == "Error: cannot write to /proc/gpuwatch: No such file or directory\n"
