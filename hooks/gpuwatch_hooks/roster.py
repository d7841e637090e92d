"""Who steps: every optimizer seen, the tensors it owns, and their places in the name tables."""

import weakref
from operator import is_

from . import discovery, wire

#: Optimizers from which on a new one takes the place of one that is gone.
MANY = 32


class Entry:
    """One optimizer. Its tensors have rows first_row ... first_row + rows - 1 of the tensor table `table_version`."""

    def __init__(self, index, optimizer):
        self.index = index
        self.optimizer = None  # a weak reference; None: the entry stands for several
        self.label = type(optimizer).__name__
        self.parameters = []  # each once, in the order of the groups; let go when the optimizer goes
        self.numels = []
        self.names = []
        self.rows = 0
        self.first_row = 0
        self.table_version = 0
        self.steps = 0  # steps taken, skipped ones included
        self.iteration = 0  # the last iteration it stepped in
        self.part = None  # the open measurement of its next step
        self.roots = []  # weak references to the modules whose parameters it owns
        self.unnamed = 0
        self.uniform = True  # all gradients are ordinary tensors on one device
        self.sharded = False  # FullyShardedDataParallel leaves this rank plain tensors that are parts of the model's
        self.training = None  # whether its modules were in train() at the last backward
        self.in_step = 0  # depth: a subclass may call super().step(), and then both fire
        self._listed = None  # the tensors as the groups list them, to be compared by identity
        self._references = []
        if optimizer is not None:
            self.belong_to(optimizer)

    def belong_to(self, optimizer):
        """From now on the entry of this optimizer; when it goes, its tensors are not kept alive here."""
        self.part, self.in_step, self.training = None, 0, None
        self.optimizer = weakref.ref(optimizer, self._let_go)

    def _let_go(self, _reference):
        self.parameters, self.part, self._listed = [], None, None

    def alive(self):
        """Whether its optimizer still exists."""
        return self.optimizer is None or self.optimizer() is not None

    def has(self, parameters):
        """Whether these are its tensors, or were when its optimizer went."""
        references = self._references
        return len(references) == len(parameters) and all(r() is p for r, p in zip(references, parameters))

    def lists(self, parameters):
        """Whether these very tensors, in this order, are what it was last told of."""
        listed = self._listed
        return listed is not None and len(listed) == len(parameters) and all(map(is_, listed, parameters))

    def parameters_changed(self, parameters):
        """Take `parameters` over when they are others than last time (a group was added, a model unfrozen or replaced)."""
        if self.lists(parameters):
            return False
        self._listed, ids = parameters, list(map(id, parameters))
        self._references = list(map(weakref.ref, parameters))
        self.uniform = True
        self.parameters = list(dict(zip(ids, parameters)).values())  # a tensor listed twice counts once
        self.numels = [parameter.numel() for parameter in self.parameters]
        return True


class Roster:
    """All entries of this process, by optimizer; sends the name tables through `session.names`."""

    def __init__(self, session):
        self._session = session
        self._entries = {}  # id(optimizer) -> Entry
        self._order = []
        self.version = 0  # of the name tables
        self.listeners = []  # called when there is a new version, with nothing
        self._given = {}  # id(parameter) -> (weak reference, name) told by watch()
        self._naming_attempts = 0

    def __iter__(self):
        return iter(self._order)

    def __len__(self):
        return len(self._order)

    def find(self, optimizer):
        """The entry of `optimizer`, or None when it has not stepped yet."""
        entry = self._entries.get(id(optimizer))
        if entry is not None and entry.optimizer() is not optimizer:
            return None  # the id of one that is gone
        return entry

    def entry(self, optimizer):
        """The entry of `optimizer`, made and announced when it is new, and renewed when its tensors have changed."""
        groups = optimizer.param_groups
        parameters = groups[0]["params"] if len(groups) == 1 else [p for group in groups for p in group["params"]]
        entry = self.find(optimizer)
        if entry is not None and not entry.unnamed and entry.lists(parameters):
            return entry
        parameters = list(parameters)
        if entry is None:
            entry = self._inherited(optimizer, parameters)
            if entry is None:
                entry = Entry(len(self._order), optimizer)
                self._order.append(entry)
            self._entries[id(optimizer)] = entry
        if entry.parameters_changed(parameters):
            self._naming_attempts = 0
            self._announce(entry)
        elif entry.unnamed and self._naming_attempts < 3 and entry.steps in (1, 2, 4):
            # a model may reach the stack's variables later than its optimizer first steps
            self._naming_attempts += 1
            self._announce(entry)
        return entry

    def _inherited(self, optimizer, parameters):
        """The entry of an optimizer that is gone: of one with the same tensors, or of any once there are very many.

        Some loops make a new optimizer for each task or step; numbers and tables must not grow with them.
        """
        for entry in self._order:
            if not entry.alive() and (entry.has(parameters) or len(self._order) >= MANY):
                entry.belong_to(optimizer)
                return entry
        return None

    def add(self, label):
        """An entry that stands for several optimizers; give it tensors with `adopt`."""
        entry = Entry(len(self._order), None)
        entry.label = label
        self._order.append(entry)
        return entry

    def adopt(self, entry, parameters):
        """The tensors of an entry made by `add`."""
        if entry.parameters_changed(parameters):
            self._announce(entry)

    def give_names(self, names):
        """Names told by the user: pairs of (parameter, name). They win over discovered ones."""
        for parameter, name in names:
            self._given[id(parameter)] = (weakref.ref(parameter), name)
        for entry in self._order:
            if entry.parameters:
                self._announce(entry)

    def _given_name(self, parameter):
        reference, name = self._given.get(id(parameter), (None, None))
        return name if reference is not None and reference() is parameter else None

    def _announce(self, entry):
        found = discovery.search(entry.parameters)
        optimizer = entry.optimizer() if entry.optimizer is not None else None
        variable = found.variable(optimizer)
        if variable:
            entry.label = variable
        entry.roots = found.roots
        entry.sharded = any(_is_sharded(root()) for root in found.roots)
        names, unnamed = [], 0
        for place, parameter in enumerate(entry.parameters):
            name = self._given_name(parameter) or found.name(parameter)
            if name is None:
                unnamed += 1
                name = discovery.fallback(optimizer, place, parameter)
            names.append(name)
        entry.unnamed = unnamed
        if names == entry.names and entry.table_version == self.version:
            return
        entry.names = names
        self._send()

    def _send(self):
        """Lay all tensors out anew and send the tables under a new version."""
        self.version += 1
        names, numels, taken = [], [], set()
        several = sum(1 for entry in self._order if entry.parameters) > 1
        for entry in self._order:
            entry.first_row, entry.table_version = len(names), self.version
            room = max(0, wire.MAX_TENSORS - len(names))
            kept = entry.names
            entry.rows = min(len(kept), room)
            folded = len(kept) > room > 0
            own = kept[: room - 1] if folded else kept[:room]
            for own_name, numel in zip(own, entry.numels):
                name = own_name
                if name in taken and several:
                    name = "%s/%s" % (entry.label, name)
                while name in taken:
                    name += "'"
                taken.add(name)
                names.append(name[: wire.MAX_NAME_CHARS])
                numels.append(numel)
            if folded:
                names.append(wire.OTHER_NAME)
                numels.append(sum(entry.numels[room - 1 :]))
        self._session.names("tensor", self.version, 0, names, numels)
        labels, groups = _labels(self._order), []
        for entry, label in zip(self._order, labels):
            optimizer = entry.optimizer() if entry.optimizer is not None else None
            for index, group in enumerate(optimizer.param_groups if optimizer is not None else ()):
                told = group.get("name")
                name = told if isinstance(told, str) else "group%d" % index
                groups.append("%s/%s" % (label, name) if several else name)
        self._session.names("optimizer", self.version, 0, labels)
        self._session.names("group", self.version, 0, groups)
        for listener in self.listeners:
            self._session.guard.run("roster", listener)


def _is_sharded(module):
    # DTensors say so themselves; the plain tensors of FullyShardedDataParallel do not. NO_SHARD replicates.
    handles = [inner.__dict__.get("_handle") for inner in module.modules()] if module is not None else ()
    return any(getattr(handle, "uses_sharded_strategy", False) is True for handle in handles)


def _labels(entries):
    """One label an optimizer: its variable or its class, numbered where two would be the same."""
    labels = []
    for entry in entries:
        label, number = entry.label, 2
        while label in labels:
            label, number = "%s.%d" % (entry.label, number), number + 1
        labels.append(label)
    return labels
