"""`watch(model, optimizer)`: the hooks put in by hand, and told what they would otherwise have to find out."""

from . import discovery, notices, settings, untraced, wire
from . import session as sessions

_open = []  # the open Watches of a session that a Watch began; the last one to close ends it


class Watch:
    """What `watch` returns; close it, or use it as a context manager. Nothing here raises."""

    def __init__(self, session):
        self._session = session

    @property
    def recording(self):
        """Whether this process records, or will from its next optimizer step on."""
        session = self._session
        return session is not None and session.installed and not session.over

    def close(self):
        """Take the hooks out without a trace, unless `gpuwatch run` or another open Watch still wants them. Idempotent."""
        session, self._session = self._session, None
        if self in _open:
            _open.remove(self)
            if not _open:
                _attempt("the hooks could not be taken out", session.detach)

    def __enter__(self):
        return self

    def __exit__(self, *_exception):
        self.close()


def watch(model, optimizer=None, scaler=None, name=None, every=settings.DEFAULTS.every, histograms=True):
    """Record the training of this process, with or without `gpuwatch run` around it; returns a Watch.

    `model` (torch.nn.Module) gives the layers their names, without what DistributedDataParallel, torch.compile and other
    wrappers put in front of them. Every optimizer and GradScaler of the process is recorded; where there are several, the loss
    of `optimizer` stands for the run, and the settings of `scaler` are recorded with it. `name` is the run's, unless it has
    one already. Per-layer statistics are taken on every `every`-th step, histograms of gradients and weights unless
    `histograms` is false; what the environment says (`gpuwatch run --every`) wins.

    Call it once the model is built, before the loop. Without a daemon there is one line on stderr, and the hooks keep looking
    for one; in a forked worker nothing happens. An argument that cannot be used is told on stderr and left out.
    """
    session = _attempt("watch() could not begin", sessions.renewed)
    if session is None or session.over:
        return Watch(None)
    watcher = Watch(session)
    session.announces_absence = True
    _attempt("watch(name=...) is left out", _name, session, name)
    _attempt("watch(every=..., histograms=...) is left out", _adjust, session, every, histograms)
    if not session.installed:
        session.install()
        _open.append(watcher)
    elif _open:
        _open.append(watcher)
    if session.recorder is not None:
        _attempt("watch(model) is left out", _name_layers, session.recorder, model)
        _attempt("watch(optimizer=...) is left out", _prefer_optimizer, session.recorder, optimizer)
    _attempt("watch(scaler=...) is left out", _describe_scaler, session, scaler)
    return watcher


untraced.hide(watch)


def _attempt(failure, function, *arguments):
    try:
        return function(*arguments)
    except Exception as error:
        notices.say_once("%s: %s" % (failure, error))
        return None


def _name(session, name):
    if name is None:
        return
    if not isinstance(name, str) or not name:
        raise TypeError("a name is a str, not %r" % (name,))
    name = name[: wire.MAX_NAME_CHARS]
    if session.settings.run is None and not session.armed:
        session.run = name
    else:
        session.meta({"name": name})  # the folder has its name already; the fact is shown beside it


def _adjust(session, every, histograms):
    """Only what differs from the default is a wish of the caller's; the environment's word is left standing."""
    wishes = {"every": settings.checked("every", every), "histograms": settings.checked("histograms", histograms)}
    fixed = session.settings.fixed
    changes = {key: value for key, value in wishes.items() if key not in fixed and value != getattr(settings.DEFAULTS, key)}
    session.adjust(changes, explicit=True)


def _name_layers(recorder, model):
    from torch import nn

    if not isinstance(model, nn.Module):
        raise TypeError("a torch.nn.Module is needed, not %s" % type(model).__name__)
    recorder.roster.give_names(discovery.names_of(model))


def _prefer_optimizer(recorder, optimizer):
    if optimizer is None:
        return
    from torch import optim

    plain = optimizer
    while hasattr(plain, "optimizer"):  # the frameworks' wrappers never step themselves, also those that are an Optimizer
        plain = plain.optimizer
    if not isinstance(plain, optim.Optimizer):
        raise TypeError("a torch.optim.Optimizer is needed, not %s" % type(optimizer).__name__)
    recorder.roster.entry(plain)  # the first one known has number 0, and the lowest number's loss stands for the run


def _describe_scaler(session, scaler):
    """Any GradScaler is followed from the losses that it scales; how it was set is recorded here as facts."""
    if scaler is None:
        return
    try:
        facts = {
            "loss_scaler": type(scaler).__name__ if scaler.is_enabled() else "disabled",
            "loss_scaler_growth_interval": scaler.get_growth_interval(),
            "loss_scaler_growth_factor": scaler.get_growth_factor(),
            "loss_scaler_backoff_factor": scaler.get_backoff_factor(),
        }
    except AttributeError:
        raise TypeError("a GradScaler is needed, not %s" % type(scaler).__name__) from None
    session.meta(facts)
