"""Modules that are waited for while several threads ask at once: somebody's own importer may ask without Python's lock."""

import importlib.machinery
import sys
import threading

import pytest
from gpuwatch_hooks.post_import import Waiter


@pytest.fixture
def slow_finder(tmp_path, monkeypatch):
    """A finder that holds the import of `slow_module` up until told; `slow_module` and `quick_module` can be imported."""
    for name in ("slow_module", "quick_module"):
        (tmp_path / f"{name}.py").write_text("")
        monkeypatch.delitem(sys.modules, name, raising=False)
    asked, go_on = threading.Event(), threading.Event()

    class Slow:
        @staticmethod
        def find_spec(name, path=None, target=None):
            if name == "slow_module":
                asked.set()
                assert go_on.wait(20)

    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "meta_path", [Slow, importlib.machinery.PathFinder])
    yield asked, go_on
    for name in ("slow_module", "quick_module"):
        sys.modules.pop(name, None)


def test_one_thread_that_asks_does_not_hide_what_another_asks_for(slow_finder):
    asked, go_on = slow_finder
    waiter = Waiter(dict.fromkeys(("slow_module", "quick_module"), print), print)
    waiter.begin()
    thread = threading.Thread(target=waiter.find_spec, args=("slow_module",))
    thread.start()
    assert asked.wait(20)
    spec = waiter.find_spec("quick_module")
    assert spec is not None
    assert "exec_module" in vars(spec.loader)  # the step behind it
    go_on.set()
    thread.join(20)
    waiter.leave()
    assert waiter not in sys.meta_path
