"""What an attach runs in a process that was started without us: begin to record, or take everything out again.

Both run in the main thread between two of its bytecodes and return a short status for the attacher to read.
"""

from . import bootstrap, identity, notices, session

#: Set by the loader: a callable that takes our modules and their finder out of the interpreter.
forget = None


def begin(options):
    """Put the hooks in. `options`: socket, run, every, histograms, overhead_budget, told (a line for stderr, or None).

    Returns "installed", or "already" where hooks are in already: they stay as they are, with the new settings.
    """
    current = session.renewed()
    adjustable = {name: options[name] for name in ("every", "histograms", "overhead_budget") if options.get(name) is not None}
    if current.installed and not current.over:
        current.adjust(adjustable, explicit=True)
        return "already"
    current.settings = current.settings._replace(socket=options.get("socket") or current.settings.socket)
    current.run = options.get("run") or identity.run_name()
    bootstrap.start(adjustable)
    if current.over or current.recorder is None:
        if forget is not None:
            forget()
        return "failed: the hooks could not be installed; its standard error says why"
    current.meta({"attached": options.get("method", "attach")})
    if options.get("told"):
        notices.say_once(options["told"])
    return "installed"


def end():
    """Take the hooks out: patches, hooks, thread, descriptors, ring, and, where an attach brought them, the modules.

    Never waits in the job's main thread: "leaving" while our own thread still delivers the last records; ask again.
    """
    current = session.current()
    if not current.installed:
        return "absent"
    if not current.over:
        current.leave("detached")
    if current.control is not None:
        current.control.ask_to_stop()
        if current.control.is_alive():
            return "leaving"
    if forget is not None:
        forget()
    return "detached"
