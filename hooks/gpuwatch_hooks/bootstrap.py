"""What injection runs in a process that has imported torch: put the hooks in, or take them out. Neither ever raises."""

from . import notices, session


def start(settings=None):
    """Install the hooks in this process (torch must be imported). `settings`: adjustable settings by name, or None."""
    try:
        current = session.renewed()
        if settings:
            current.adjust(settings, explicit=True)
        current.install()
    except Exception as error:
        notices.say_once(
            "the hooks could not be installed (%s: %s); training goes on without them" % (type(error).__name__, error)
        )


def stop():
    """Take everything out again, as `gpuwatch detach` does."""
    try:
        session.current().detach()
    except Exception as error:
        notices.say_once("the hooks could not be taken out (%s: %s)" % (type(error).__name__, error))
