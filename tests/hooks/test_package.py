"""The package's public names: found lazily, functions for ever, and nothing heavy behind an import."""

import subprocess
import sys
import types

import gpuwatch_hooks
import pytest

import gpuwatch


@pytest.mark.parametrize("name", gpuwatch_hooks.__all__)
def test_each_public_name_is_a_documented_function_under_both_packages(name):
    function = getattr(gpuwatch_hooks, name)
    assert isinstance(function, types.FunctionType)
    assert function.__doc__
    assert getattr(gpuwatch, name) is function
    assert name in dir(gpuwatch_hooks)


def test_an_unknown_name_is_an_attribute_error():
    for package in (gpuwatch, gpuwatch_hooks):
        with pytest.raises(AttributeError, match="no_such_name"):
            _ = package.no_such_name


def test_a_submodule_does_not_take_a_functions_place():
    """`gpuwatch_hooks.watch` is also a file: importing that must not turn the function into a module."""
    code = (
        "import gpuwatch_hooks.watch, gpuwatch_hooks.log, gpuwatch_hooks.feature_maps, gpuwatch_hooks as g\n"
        "from gpuwatch_hooks.watch import Watch\n"
        "from gpuwatch_hooks import watch, session\n"
        "assert callable(g.watch) and callable(watch) and callable(g.log) and callable(g.feature_maps)\n"
        "assert Watch.__module__ == 'gpuwatch_hooks.watch' and session.__name__ == 'gpuwatch_hooks.session'\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_the_daemons_import_of_the_wire_loads_nothing_else():
    code = (
        "import sys\n"
        "from gpuwatch_hooks import wire\n"
        "print(sorted(name for name in sys.modules if name.startswith(('gpuwatch', 'torch', 'numpy'))))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, timeout=60, capture_output=True, text=True)
    assert done.stdout == "['gpuwatch_hooks', 'gpuwatch_hooks.wire']\n"


def test_the_hooks_do_not_import_torch_by_themselves():
    code = (
        "import sys\n"
        "from gpuwatch_hooks import session, bootstrap, watch, log\n"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
