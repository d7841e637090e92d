"""What is shipped: a wheel with both packages and nothing else, which works where it is installed; what the docs call it."""

import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import gpuwatch_hooks
import pytest

import gpuwatch

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
#: On the package index that name is another project's.
WRONG_NAME = re.compile(r"pip3? install (-\S+ )*['\"]?gpuwatch(?![\w])")


def tracked():
    """The files that git knows, so that what lies about beside them is not judged."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, timeout=30, check=True)
    return [name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The folder with the wheel and the source distribution, built from the tracked files alone."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("built")
    for name in tracked():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes((ROOT / name).read_bytes())
    build = [sys.executable, "-m", "hatchling", "build", "-d", str(target), "-t", "sdist", "-t", "wheel"]
    subprocess.run(build, cwd=source, capture_output=True, timeout=120, check=True)
    return target


def test_the_wheel_has_both_packages_and_nothing_else(built):
    (wheel,) = built.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {name.split("/")[0] for name in names} == {
        "gpuwatch",
        "gpuwatch_hooks",
        f"gpuwatchd-{gpuwatch.__version__}.dist-info",
    }
    assert {
        "gpuwatch/cli/run.py",
        "gpuwatch/py.typed",
        "gpuwatch/demo/digits.py",
        "gpuwatch_hooks/inject/sitecustomize.py",
    } <= names
    page = {path.relative_to(ROOT).as_posix() for path in (ROOT / "gpuwatch" / "web").rglob("*") if path.is_file()}
    assert len(page) > 15
    assert page <= names, "the web page, and the licence of the charts beside them"
    assert any(name.endswith("licenses/LICENSE") for name in names)
    missing = {
        f"{package}/{path.relative_to(folder)}"
        for package, folder in (("gpuwatch", ROOT / "gpuwatch"), ("gpuwatch_hooks", ROOT / "hooks" / "gpuwatch_hooks"))
        for path in folder.rglob("*.py")
        if str(path.relative_to(ROOT)) in set(tracked())
    } - names
    assert not missing


def test_the_source_distribution_has_what_a_build_and_a_reader_need(built):
    (archive,) = built.glob("*.tar.gz")
    top = f"gpuwatchd-{gpuwatch.__version__}/"
    with tarfile.open(archive) as opened:
        names = set(opened.getnames())
    assert {top + name for name in ("pyproject.toml", "README.md", "LICENSE", "gpuwatch/daemon.py")} <= names
    assert not [name for name in names if "/.venv/" in name or name.endswith(".pyc") or "/runs/" in name]


def test_an_installed_wheel_works_and_reaches_a_child(built, tmp_path):
    (wheel,) = built.glob("*.whl")
    place = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(place), str(wheel)]
    subprocess.run(install, capture_output=True, timeout=120, check=True)
    environ = {**os.environ, "PYTHONPATH": str(place), "XDG_RUNTIME_DIR": str(tmp_path), "HOME": str(tmp_path)}
    environ.pop("GPUWATCH_SOCKET", None)
    settings = {"cwd": tmp_path, "env": environ, "capture_output": True, "text": True, "timeout": 60}
    script = place / "bin" / "gpuwatch"
    helped = subprocess.run([str(script), "--help"], check=False, **settings)
    assert helped.returncode == 0, helped.stderr
    show = "import os, sys; print(os.environ['PYTHONPATH']); print([type(finder).__name__ for finder in sys.meta_path][0])"
    ran = subprocess.run([str(script), "run", "-q", "--", sys.executable, "-c", show], check=False, **settings)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == f"{place}/gpuwatch_hooks/inject:{place}\n_WaitForTorch\n"


def test_the_wheel_exports_what_the_checkout_exports(built, tmp_path):
    (wheel,) = built.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    exported = {}
    for place in (tmp_path / "site", ROOT):
        target = tmp_path / f"from-{place.name}"
        environ = {**os.environ, "PYTHONPATH": str(place)}
        for what in ("dashboards", "rules"):
            command = [sys.executable, "-m", "gpuwatch", what, "export", str(target)]
            subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, timeout=60, check=True)
        files = {path.relative_to(target): path.read_text() for path in target.rglob("*") if path.is_file()}
        exported[place] = {name: text.replace(str(target), "") for name, text in files.items()}
    assert exported[tmp_path / "site"] == exported[ROOT]
    assert len(exported[ROOT]) > 20
    units = {path.relative_to(ROOT) for path in (ROOT / "systemd").rglob("*") if path.is_file()}
    assert units == {
        path.relative_to(tmp_path / "site/gpuwatch/shipped")
        for path in (tmp_path / "site/gpuwatch/shipped/systemd").rglob("*")
        if path.is_file()
    }


def test_there_is_one_version():
    assert PROJECT["version"] == gpuwatch.__version__ == gpuwatch_hooks.__version__


def test_torch_is_no_dependency_of_the_daemon():
    assert not [need for need in PROJECT["dependencies"] if need.startswith(("torch", "numpy"))]
    assert "torch==2.13.0" in (ROOT / "constraints.txt").read_text().split()


@pytest.mark.parametrize("text", ["pip install gpuwatch", "pip install -U 'gpuwatch[demo]'", "pip3 install gpuwatch==1"])
def test_the_wrong_name_is_noticed(text):
    assert WRONG_NAME.search(text)
    assert not WRONG_NAME.search(text.replace("gpuwatch", "gpuwatchd"))


def test_no_text_names_another_projects_package_or_a_registry_or_this_machine():
    hosts = re.compile(r"pypi\.org|pythonhosted|registry\.npmjs|deb\.debian\.org|/work/(main|shared|steering)|/root/\.pyenv")
    own = Path(__file__).relative_to(ROOT).as_posix()
    for name in tracked():
        try:
            text = (ROOT / name).read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        if name != own:
            assert not hosts.search(text), name
            assert not WRONG_NAME.search(text), name
