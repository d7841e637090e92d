"""Mirrors what the job itself writes with SummaryWriter.add_scalar (torch's and tensorboardX's), without being asked.

The writer does its own work first, unchanged, and what it raises passes. The classes are wrapped when their modules are
imported, never before: importing torch.utils.tensorboard takes a second, and most jobs do not.
"""

from ..log import number
from ..post_import import Waiter

MODULES = ("torch.utils.tensorboard.writer", "tensorboardX.writer")


class ScalarsProbe:
    """No work at a step; the writer's own calls drive it."""

    name = "scalars"

    def install(self, recorder):
        """Wrap the SummaryWriter classes that are imported; the others once they are."""
        self._session = recorder.session
        self._waiter = Waiter(dict.fromkeys(MODULES, self._wrap), lambda error: self._session.guard.fault(self.name, error))
        self._waiter.begin()

    def remove(self):
        """Stop waiting for imports; the ledger takes the wrappers out."""
        self._waiter.leave()

    def _wrap(self, module):
        guard, ledger = self._session.guard, self._session.ledger
        one, several = guard.wrap(self.name, self._one), guard.wrap(self.name, self._several)
        ledger.wrap(module.SummaryWriter, "add_scalar", lambda original: _followed(original, one))
        ledger.wrap(module.SummaryWriter, "add_scalars", lambda original: _followed(original, several))

    def _one(self, _writer, tag, scalar_value, global_step=None, *_args, **_kwargs):
        self._mirror(tag, scalar_value, global_step)

    def _several(self, _writer, main_tag, tag_scalar_dict, global_step=None, *_args, **_kwargs):
        for tag, value in tag_scalar_dict.items():
            self._mirror("%s/%s" % (main_tag, tag), value, global_step)

    def _mirror(self, tag, value, step):
        session = self._session
        try:
            value = number(value)
            step = session.step if step is None else int(step)
        except (TypeError, ValueError, OverflowError):
            return  # the writer knew what to do with it, we do not: it is the user's, and no fault of ours
        if step >= 0:
            session.scalar(str(tag), step, value)


def _followed(original, mirror):
    def method(*args, **kwargs):
        result = original(*args, **kwargs)
        mirror(*args, **kwargs)
        return result

    return method
