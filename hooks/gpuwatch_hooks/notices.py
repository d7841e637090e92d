"""One line on stderr, once: all that a user ever sees of a hook that could not do its work."""

import sys

_said = set()


def say_once(text):
    """Print `gpuwatch: text` to stderr the first time it is asked for in this process. Never raises."""
    if text in _said:
        return
    _said.add(text)
    try:
        sys.stderr.write("gpuwatch: %s\n" % text)
    except Exception:  # noqa: S110 - stderr may be closed, or None, or somebody's object
        pass
