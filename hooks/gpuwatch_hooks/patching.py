"""The ledger of patches: put a wrapper in, and take it out again without taking somebody else's.

A wrapper is taken out only where it is outermost. Where another tool has wrapped ours since, it stays and goes dormant:
one extra Python call (47 ns measured), because the usual ways (set the attribute to `__wrapped__`, or to what we saved)
remove the other tool's layer or leave ours firing.
"""

import functools
import inspect
import types

from . import untraced

_MARK = "__gpuwatch_patch__"
_ABSENT = object()


class _Patch:
    """One wrapped attribute: `raw` is what stood in the owner's own namespace before (or _ABSENT: it was inherited)."""

    __slots__ = ("attribute", "installed", "original", "owner", "raw", "switch", "target", "wrapper")

    def __init__(self, owner, attribute, raw, original):
        self.owner = owner
        self.attribute = attribute
        self.raw = raw
        self.original = original
        self.target = original
        self.wrapper, self.switch = _switchable(original)
        self.installed = self.wrapper
        setattr(self.wrapper, _MARK, self)

    def aim(self, function):
        """Let the wrapper call `function` from now on; the original makes it dormant."""
        self.target = function
        self.switch(function)


def _switchable(original):
    """A wrapper of `original` that calls a target, and the function that sets the target: one assignment to one cell."""
    target = original

    def wrapper(*args, **kwargs):
        return target(*args, **kwargs)

    def switch(function):
        nonlocal target
        target = function

    functools.update_wrapper(wrapper, original, updated=())
    for name, value in getattr(original, "__dict__", {}).items():
        # The compiler's own marks speak about the function that carries them, not about a wrapper of it.
        if not name.startswith("_torchdynamo") and name != _MARK:
            setattr(wrapper, name, value)
    return untraced.stand_in(wrapper, original), switch


def _unwrapped(raw):
    """The plain function inside a staticmethod or classmethod, and the way back."""
    if isinstance(raw, (staticmethod, classmethod)):
        return raw.__func__, type(raw)
    return raw, None


def patch_of(value):
    """Our patch whose wrapper `value` is, or None. A foreign wrapper that functools.wraps gave our mark is not ours."""
    function, _ = _unwrapped(value)
    patch = getattr(function, "__dict__", {}).get(_MARK)
    return patch if patch is not None and patch.wrapper is function else None


def _spent():
    """What stands in a torch hook table after us where taking the entry out could break a loop; it holds nothing of ours."""
    function = types.FunctionType((lambda *_args, **_kwargs: None).__code__, {"__builtins__": {}}, "gpuwatch_was_here")
    return untraced.hide(function)


def _is_spent(hook):
    return getattr(hook, "__name__", None) == "gpuwatch_was_here" and type(hook) is types.FunctionType


class Ledger:
    """The patches and hooks of one session. `wrap` and `hook` may raise (TypeError, AttributeError); `remove` does not."""

    def __init__(self):
        self._patches = []
        self._handles = []
        self._tables = []  # torch's hook tables that we have been in

    def __len__(self):
        return len(self._patches) + len(self._handles)

    def wrap(self, owner, attribute, make_wrapper):
        """Replace `owner.attribute` by `make_wrapper(original)`, for a function, a method, a staticmethod or a classmethod.

        `owner` is a module, a class or an instance. The result looks like the original (name, doc, signature). Where a
        wrapper of ours is outermost already, dormant or not, the new one goes in behind it: no second layer.
        """
        patch = patch_of(inspect.getattr_static(owner, attribute))
        if patch is None or patch.owner is not owner:
            patch = _new_patch(owner, attribute)
        active = make_wrapper(patch.target)
        untraced.skip_frame(active)
        patch.aim(active)
        if patch not in self._patches:
            setattr(owner, attribute, patch.installed)
            self._patches.append(patch)

    def hook(self, register, function):
        """`register(function)`, one of torch's own register_..._hook functions; the handle it returns is kept."""
        self._handles.append(register(untraced.hide(function)))
        self._tables.append(self._handles[-1].hooks_dict_ref)
        self.sweep()

    def remove(self):
        """Everything out, the latest first. Safe from any thread, also while the training thread is inside a wrapper."""
        while self._handles:
            _withdraw(self._handles.pop())
        while self._patches:
            _restore(self._patches.pop())

    def sweep(self):
        """Take out what `remove`, ours or an earlier session's, has left in torch's tables. Only where nobody iterates them."""
        for table in self._tables:
            hooks = table()
            for key in [key for key, hook in list((hooks or {}).items()) if _is_spent(hook)]:
                del hooks[key]


def _new_patch(owner, attribute):
    namespace = getattr(owner, "__dict__", {})
    original, remake = _unwrapped(inspect.getattr_static(owner, attribute))
    if not callable(original):
        raise TypeError("%r of %r is not a function" % (attribute, owner))
    if not inspect.isclass(owner) and attribute not in namespace:
        # Found on the instance's class: what stands on an instance is not bound again when it is looked up.
        original, remake = getattr(owner, attribute), None
    patch = _Patch(owner, attribute, namespace.get(attribute, _ABSENT), original)
    if remake:
        patch.installed = remake(patch.wrapper)
    return patch


def _withdraw(handle):
    hooks = handle.hooks_dict_ref()
    if hooks is None or handle.id not in hooks:
        return
    # Replacing a value is safe while torch iterates the table; taking an entry out is not (RuntimeError in the user's step),
    # unless it is the only one: an iterator that stands on it has nothing further to look up.
    hooks[handle.id] = _spent()
    if len(hooks) == 1:
        handle.remove()


def _restore(patch):
    patch.aim(patch.original)
    namespace = getattr(patch.owner, "__dict__", {})
    if namespace.get(patch.attribute) is not patch.installed:
        return  # somebody has wrapped or replaced it since: ours stays where it is, dormant
    try:
        if patch.raw is _ABSENT:
            delattr(patch.owner, patch.attribute)
        else:
            setattr(patch.owner, patch.attribute, patch.raw)
    except Exception:  # noqa: S110 - an owner that refuses now keeps a dormant wrapper
        pass
