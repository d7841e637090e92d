"""The mirror of SummaryWriter.add_scalar: the writer does what it did, and the value arrives here too."""

import importlib
import sys

import numpy as np
import pytest
import torch
from gpuwatch_hooks import session
from gpuwatch_hooks.post_import import Waiter
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

WRITER = "torch.utils.tensorboard.writer"


@pytest.fixture
def fresh_import():
    """torch.utils.tensorboard as in a process that has not imported it; what was imported comes back afterwards."""
    parent = torch.utils
    kept = {name: module for name, module in sys.modules.items() if name.startswith("torch.utils.tensorboard")}
    bound = parent.__dict__.pop("tensorboard", None)
    for name in kept:
        del sys.modules[name]
    yield
    for name in [name for name in sys.modules if name.startswith("torch.utils.tensorboard")]:
        del sys.modules[name]
    sys.modules.update(kept)
    if bound is not None:
        parent.tensorboard = bound


@pytest.fixture
def current(make_session, monkeypatch, said):
    current = make_session()
    monkeypatch.setattr(session, "_current", current)
    current.install()
    return current


def mirrored(current):
    """[(tag, step, value)] of what waits for the daemon."""
    return [(tag, step, float(value)) for _, tag, step, value, _ in current.outbox._scalars]


def test_the_module_is_not_imported_for_the_mirrors_sake(fresh_import, current):
    assert WRITER not in sys.modules
    assert any(isinstance(finder, Waiter) for finder in sys.meta_path)


@pytest.mark.parametrize("imported_first", [True, False])
def test_scalars_reach_the_file_and_the_outbox(fresh_import, make_session, monkeypatch, tmp_path, imported_first):
    if imported_first:
        importlib.import_module(WRITER)
    current = make_session()
    current.install()
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(tmp_path)) as writer:
        writer.add_scalar("Loss/own", 0.5, 3)
        writer.add_scalar(tag="kw", scalar_value=torch.tensor(2.0), global_step=4)
        writer.add_scalar("np", np.float64(1.25), np.int64(5))
        writer.add_scalar("no step", 1)
        writer.add_scalars("both", {"a": 1.0, "b": 2.0}, 6)
        writer.add_scalar("nan", float("nan"), 7)
    told = mirrored(current)
    assert told[:6] == [
        ("Loss/own", 3, 0.5),
        ("kw", 4, 2.0),
        ("np", 5, 1.25),
        ("no step", 0, 1.0),
        ("both/a", 6, 1.0),
        ("both/b", 6, 2.0),
    ]
    assert told[6][2] != told[6][2]
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert events.Tags()["scalars"] == ["Loss/own", "kw", "np", "no step", "nan"]
    assert events.Scalars("Loss/own")[0].value == 0.5


def test_what_the_writer_raises_passes_and_is_not_mirrored(current, tmp_path):
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(tmp_path)) as writer, pytest.raises(AssertionError):
        writer.add_scalar("x", torch.zeros(3), 1)
    assert mirrored(current) == []


def test_values_that_are_no_numbers_are_left_to_the_writer(current):
    from torch.utils.tensorboard import SummaryWriter

    seen = []
    writer = SummaryWriter.__new__(SummaryWriter)
    writer._get_file_writer = type("Sink", (), {"add_summary": lambda *args: seen.append(args)})
    for _ in range(5):
        writer.add_scalar("x", 1.0, "no step")
    assert mirrored(current) == []
    assert not current.guard.is_off("scalars")
    writer.add_scalar("x", 1.0, 2)
    assert mirrored(current) == [("x", 2, 1.0)]
    assert len(seen) == 6


def test_detach_leaves_the_class_and_the_import_system_as_they_were(fresh_import, make_session):
    before = list(sys.meta_path)
    current = make_session()
    current.install()
    module = importlib.import_module(WRITER)
    assert module.SummaryWriter.add_scalar.__module__ == WRITER
    patched = vars(module.SummaryWriter)["add_scalar"]
    current.detach()
    assert vars(module.SummaryWriter)["add_scalar"] is not patched
    assert "__wrapped__" not in vars(vars(module.SummaryWriter)["add_scalar"])
    assert sys.meta_path == before
    waiting = make_session()
    waiting.install()
    waiting.detach()
    assert sys.meta_path == before


def test_a_waiter_waits_for_several_and_a_failing_callback_breaks_no_import(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("gw_first", "gw_second"):
        (tmp_path / f"{name}.py").write_text("value = 1")
    seen, errors = [], []

    def fail(module):
        seen.append(module.__name__)
        raise ValueError("no")

    waiter = Waiter({"gw_first": fail, "gw_second": lambda module: seen.append(module.value)}, errors.append)
    waiter.begin()
    assert importlib.import_module("gw_first").value == 1
    assert waiter in sys.meta_path
    assert importlib.import_module("gw_second").value == 1
    assert waiter not in sys.meta_path
    assert seen == ["gw_first", 1]
    assert [str(error) for error in errors] == ["no"]
    for name in ("gw_first", "gw_second"):
        loader = sys.modules.pop(name).__spec__.loader
        assert "exec_module" not in vars(loader)


def test_a_waiter_leaves_an_import_that_fails_as_it_is(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "gw_broken.py").write_text("raise OSError('no disk')")
    waiter = Waiter({"gw_broken": lambda module: None, "gw_absent": lambda module: None}, pytest.fail)
    waiter.begin()
    try:
        with pytest.raises(OSError, match="no disk"):
            importlib.import_module("gw_broken")
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module("gw_absent")
        (tmp_path / "gw_broken.py").write_text("mended = True")
        importlib.invalidate_caches()
        sys.path_importer_cache.clear()
        assert importlib.import_module("gw_broken").mended
    finally:
        waiter.leave()
        sys.modules.pop("gw_broken", None)


def test_tensorboardx_is_mirrored_too(tmp_path, monkeypatch, make_session):
    """Its package is not installed here; a module of its name with its signature stands in for it."""
    package = tmp_path / "tensorboardX"
    package.mkdir()
    (package / "__init__.py").write_text("from .writer import SummaryWriter")
    (package / "writer.py").write_text(
        "class SummaryWriter:\n"
        "    def add_scalar(self, tag, scalar_value, global_step=None, walltime=None, display_name=''):\n"
        "        return 'theirs'\n"
        "    def add_scalars(self, main_tag, tag_scalar_dict, global_step=None, walltime=None):\n"
        "        return 'theirs too'\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    current = make_session()
    current.install()
    try:
        from tensorboardX import SummaryWriter

        assert SummaryWriter().add_scalar("a", 1.0, 2, display_name="A") == "theirs"
        assert SummaryWriter().add_scalars("m", {"b": 3.0}, 4) == "theirs too"
    finally:
        for name in ("tensorboardX", "tensorboardX.writer"):
            sys.modules.pop(name, None)
    assert mirrored(current) == [("a", 2, 1.0), ("m/b", 4, 3.0)]
