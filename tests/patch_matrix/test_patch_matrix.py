"""Every order of install, foreign wrapper, remove and reinstall that a job may see, on every kind of owner.

The model is a stack of layers: removing ours never takes another's, never leaves ours firing, and restores the very object
that stood there before wherever ours is outermost.
"""

import functools
import itertools
import types

import pytest
from gpuwatch_hooks.patching import Ledger, patch_of


def _polite(function):
    """Another tool that wraps with functools.wraps, as most do."""

    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        return ("theirs", function(*args, **kwargs))

    return wrapper


class _CallableObject:
    """Another tool whose wrappers are objects, as wrapt's are."""

    def __init__(self, function):
        self.function = function
        self.__wrapped__ = function

    def __call__(self, *args, **kwargs):
        return ("theirs", self.function(*args, **kwargs))

    def __get__(self, instance, owner):
        return self if instance is None else functools.partial(self, instance)


class _Module:
    def __init__(self):
        self.owner = types.ModuleType("m")
        self.owner.f = lambda value: value

    def call(self):
        return self.owner.f(1)


class _Class:
    def __init__(self):
        class Owner:
            def f(self, value):
                return value

        self.owner = Owner

    def call(self):
        return self.owner().f(1)


class _Inherited(_Class):
    def __init__(self):
        super().__init__()
        self.owner = type("Derived", (self.owner,), {})


class _Instance(_Class):
    def __init__(self):
        super().__init__()
        self.owner = self.owner()

    def call(self):
        return self.owner.f(1)


ACTIONS = ("install", "install again", "remove", "theirs", "theirs restored")
SCENES = {"module": _Module, "class": _Class, "inherited": _Inherited, "instance": _Instance}


def _depth(value, name):
    count = 0
    while isinstance(value, tuple):
        count += value[0] == name
        value = value[1]
    assert value == 1, "the original is always reached"
    return count


def _ours(original):
    def active(*args, **kwargs):
        return ("ours", original(*args, **kwargs))

    return active


class _OtherTool:
    """Wraps what it finds and later puts back what it saved, whatever stands there by then."""

    def __init__(self, owner, wrap):
        self.owner, self.wrap, self.saved = owner, wrap, []

    def install(self):
        self.saved.append(vars(self.owner).get("f"))
        self.owner.f = self.wrap(self.owner.f)

    def restore(self):
        saved = self.saved.pop()
        if saved is None:
            del self.owner.f
        else:
            self.owner.f = saved


def _run(scene, wrap, order):
    ledger, other = Ledger(), _OtherTool(scene.owner, wrap)
    installed, before = False, None
    for action in order:
        if action.startswith("install") and not installed:
            before = vars(scene.owner).get("f")
            ledger.wrap(scene.owner, "f", _ours)
            installed = True
        elif action == "remove":
            outermost = installed and patch_of(vars(scene.owner).get("f")) is not None
            ledger.remove()
            if outermost and patch_of(before) is None:
                assert vars(scene.owner).get("f") is before
            installed = False
        elif action == "theirs":
            other.install()
        elif action == "theirs restored" and other.saved:
            other.restore()
            # What they had saved may be from before ours: then ours is gone with theirs, and nobody could help it.
            installed = installed and _depth(scene.call(), "ours") == 1
        result = scene.call()
        assert _depth(result, "ours") == (1 if installed else 0), (order, action)
        assert _depth(result, "theirs") == len(other.saved), (order, action)
    ledger.remove()
    assert _depth(scene.call(), "ours") == 0
    assert _depth(scene.call(), "theirs") == len(other.saved)
    while other.saved:
        other.restore()
    assert scene.call() == 1


@pytest.mark.parametrize("foreign", [_polite, _CallableObject])
@pytest.mark.parametrize("scene", SCENES)
def test_every_order_of_up_to_six_actions(scene, foreign):
    for length in range(1, 7):
        for order in itertools.product(ACTIONS, repeat=length):
            _run(SCENES[scene](), foreign, order)


def _naive_remove(self):
    """The protection off: what unwrapping by `__wrapped__` does."""
    for patch in self._patches:
        current = getattr(patch.owner, patch.attribute)
        setattr(patch.owner, patch.attribute, getattr(current, "__wrapped__", current))
    self._patches.clear()


def test_twin_unwrapping_by_wrapped_takes_the_other_tools_layer(monkeypatch):
    monkeypatch.setattr(Ledger, "remove", _naive_remove)
    with pytest.raises(AssertionError):
        _run(_Module(), _polite, ("install", "theirs", "remove"))
