"""Names for the tensors of an optimizer, found in the variables of the functions that are running.

An unmodified loop hands us an optimizer, which knows tensors but not their names. The model is in sight of the loop: in a
local variable, in an attribute of `self`, in a list or dict of either. The frames are walked outwards from the step until
every tensor has a name. Never through gc.get_objects: it touches every object of the process (seconds on a large job).
"""

import itertools
import sys
import weakref

_MAX_FRAMES = 60
_MAX_VALUES = 2000
_OWN = __name__.rpartition(".")[0]
#: What wrappers put in front of, or inside, the names that the user knows.
_WRAPPINGS = ("module.", "_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "_forward_module.")
_CO_OPTIMIZED = 0x1


class Found:
    """What a search has found: names by tensor, the modules that own them, variables that hold optimizers."""

    def __init__(self):
        self.roots = []  # weak references to the outermost modules that own searched tensors
        self._names = {}
        self._variables = {}

    def name(self, parameter):
        """The tensor's name, aliases joined by "=" (tied weights), or None."""
        return self._names.get(id(parameter))

    def variable(self, optimizer):
        """The variable that holds this optimizer, when another optimizer is in sight too; else None."""
        return self._variables.get(id(optimizer)) if len(self._variables) > 1 else None


def search(parameters):
    """Walk the caller's frames for modules that own `parameters` (a list of tensors). Runs no code of the user's objects."""
    wanted = {id(parameter) for parameter in parameters}
    found = Found()
    modules, stepped = _in_sight(wanted, found._variables)
    roots = _outermost(modules)
    # An averaged copy or a teacher owns nothing that is stepped; two networks of a GAN do, and may have the same names inside.
    several = sum(1 for _, module in roots if any(id(p) in stepped for p in module.parameters())) > 1
    for name, module in roots:
        prefix = name + "." if several and name else ""
        aliases = {}
        for path, parameter in _named_parameters(module):
            if id(parameter) in wanted and id(parameter) not in found._names:
                names = aliases.setdefault(id(parameter), [])
                if stripped(path) not in names:
                    names.append(stripped(path))
        if aliases:
            found.roots.append(weakref.ref(module))
        for key, names in aliases.items():
            found._names[key] = prefix + "=".join(names)
    return found


def _in_sight(wanted, optimizers):
    """([(variable, module)], ids of all tensors that some optimizer in sight steps); fills `optimizers` {id: variable}."""
    from torch import nn, optim

    modules, missing, stepped, seen = [], set(wanted), set(wanted), set()
    for variables in _namespaces():
        for name, value in _reachable(variables, nn.Module):
            if _is(value, nn.Module) and id(value) not in seen:
                seen.add(id(value))
                modules.append((name, value))
                missing.difference_update(map(id, value.parameters()))
            elif _is(value, optim.Optimizer) and id(value) not in optimizers:
                optimizers[id(value)] = name
                stepped.update(id(p) for group in value.param_groups for p in group["params"])
        if not missing:
            break
    return modules, stepped


def optimizers_in_sight():
    """The torch optimizers in the variables of the running functions, nearest first; of a wrapper, the one it holds."""
    from torch import nn, optim

    found = {}
    for variables in _namespaces():
        for _, value in _reachable(variables, nn.Module):
            if _is(value, optim.Optimizer):
                # Accelerate's wrapper is an Optimizer of the same tensors, and never steps itself.
                inner = (_attributes(value) or {}).get("optimizer")
                stepping = inner if _is(inner, optim.Optimizer) else value
                found.setdefault(id(stepping), stepping)
    return list(found.values())


def stripped(path):
    """`path` without what DistributedDataParallel, torch.compile, FSDP and checkpoint wrappers put into it."""
    for wrapping in _WRAPPINGS:
        if path.startswith(wrapping):
            return stripped(path[len(wrapping) :])
    for wrapping in _WRAPPINGS[1:]:  # a submodule may be called `module`; nobody calls theirs `_orig_mod`
        path = path.replace("." + wrapping, ".")
    return path


def names_of(module):
    """[(parameter, name)] of a module's parameters, named as `search` names them (tied weights: aliases joined by "=")."""
    aliases, parameters = {}, {}
    for path, parameter in _named_parameters(module):
        parameters[id(parameter)] = parameter
        names = aliases.setdefault(id(parameter), [])
        if stripped(path) not in names:
            names.append(stripped(path))
    return [(parameters[key], "=".join(names)) for key, names in aliases.items()]


def path_in_sight(module):
    """The path of `module` in the outermost module of the caller's variables that contains it, or None."""
    from torch import nn

    outer = [value for variables in _namespaces() for _, value in _reachable(variables, nn.Module) if _is(value, nn.Module)]
    for _, root in _outermost([("", value) for value in outer]):
        for path, inner in root.named_modules():
            if inner is module and path:
                return stripped(path + ".").rstrip(".")
    return None


def fallback(optimizer, place, parameter):
    """What a tensor is called that nobody has named: `group0.3[768x768]`, its group, place and shape."""
    shape = "x".join(map(str, parameter.shape))
    for number, group in enumerate(optimizer.param_groups if optimizer is not None else ()):
        for index, candidate in enumerate(group["params"]):
            if candidate is parameter:
                told = group.get("param_names")
                if isinstance(told, (list, tuple)) and len(told) > index:
                    return stripped(str(told[index]))
                return "group%d.%d[%s]" % (number, index, shape)
    return "tensor%d[%s]" % (place, shape)


def _named_parameters(module):
    import inspect

    if "remove_duplicate" in inspect.signature(module.named_parameters).parameters:
        return module.named_parameters(remove_duplicate=False)
    return module.named_parameters()


def _outermost(modules):
    """The (name, module) pairs that no other one contains, in order."""
    inner = set()
    for _, module in modules:
        children = module.modules()
        next(children)
        inner.update(map(id, children))
    return [(name, module) for name, module in modules if id(module) not in inner]


def _namespaces():
    """The local variables of each running function outside this package, innermost first, as dicts of our own."""
    frame = sys._getframe(1)
    for _ in range(_MAX_FRAMES):
        if frame is None:
            return
        if not str(frame.f_globals.get("__name__", "")).startswith((_OWN, "torch.")):
            variables = frame.f_locals
            copy = dict(variables)
            # Before Python 3.13 the frame keeps the dict that it has just made for us, and with it this step's tensors, for as
            # long as the function runs. Empty it, unless the user called locals() and holds it too (2: the frame, us).
            private = sys.version_info < (3, 13) and frame.f_code.co_flags & _CO_OPTIMIZED
            if private and sys.getrefcount(variables) <= 3:
                variables.clear()
            del variables
            yield copy
        frame = frame.f_back


def _reachable(variables, module_class):
    """(name, object) for variables, their list and dict entries, and the attributes of objects and those entries."""
    for name, value in itertools.islice(variables.items(), _MAX_VALUES):
        yield name, value
        if _is(value, module_class):
            continue  # a module names its own tensors
        attributes = _attributes(value) if type(value).__module__ != "builtins" else None
        if type(attributes) is dict:
            for attribute, inner in list(attributes.items())[:200]:
                yield attribute, inner
                yield from _entries(attribute, inner)
        else:
            yield from _entries(name, value)


def _is(value, kind):
    """isinstance without asking the object, which may be a proxy that answers by loading something."""
    return issubclass(type(value), kind)


def _attributes(value):
    try:
        return object.__getattribute__(value, "__dict__")
    except AttributeError:
        return None


def _entries(name, container):
    if _is(container, dict):
        for key, entry in itertools.islice(list(dict.items(container)), 100):
            # An optimizer's state has tensors for keys: their text takes 2 ms each, and on a GPU a synchronization.
            yield str(key) if type(key) in (str, int) else name, entry
    elif type(container) in (list, tuple):
        for number, entry in enumerate(container[:100]):
            yield "%s%d" % (name, number), entry
