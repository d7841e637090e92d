"""Whether the model was in train() or eval() when backward ran: training in eval mode switches dropout and BatchNorm off."""


class ModesProbe:
    """Looks at the modules that own the optimizer's tensors; the loss probe tells when a backward begins."""

    name = "modes"

    def install(self, recorder):
        self._recorder = recorder

    def at_backward(self):
        """Note the mode of every known optimizer's modules."""
        for entry in self._recorder.roster:
            modes = [root.training for root in [reference() for reference in entry.roots] if root is not None]
            entry.training = all(modes) if modes else None

    def any_training(self):
        """Whether a module that owns tensors of an optimizer is in train() now."""
        return any(_mode(entry) for entry in self._recorder.roster)

    def after(self, part):
        entry = part.entry
        mode, entry.training = entry.training, None
        if mode is None:
            mode = _mode(entry)
        if mode is not None:
            part.fields["training_mode"] = 1.0 if mode else 0.0


def _mode(entry):
    modes = [root.training for root in [reference() for reference in entry.roots] if root is not None]
    return all(modes) if modes else None
