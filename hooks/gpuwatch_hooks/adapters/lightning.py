"""For Lightning: `Trainer(callbacks=[GpuwatchCallback()])`.

The hooks see a Lightning job without this. The callback adds what only the framework knows: its settings as facts, the
module's hyper-parameters, and the metrics of `self.log`, which without a TensorBoard logger go nowhere that can be watched.
"""

import importlib
import sys

from .. import notices
from .. import session as sessions
from ..log import log
from ..watch import watch
from .metrics import has_writer, pass_on


def _callback_class():
    """Callback of the package that the job uses: lightning, or pytorch_lightning of before 2.0."""
    old = "pytorch_lightning" in sys.modules and "lightning" not in sys.modules
    return importlib.import_module("pytorch_lightning" if old else "lightning.pytorch").Callback


class GpuwatchCallback(_callback_class()):
    """Watches one Trainer.fit; `name`, `every` and `histograms` as gpuwatch.watch takes them. Raises nothing into training."""

    def __init__(self, name=None, every=1, histograms=True):
        super().__init__()
        self._options = {"name": name, "every": every, "histograms": histograms}
        self._watch = None
        self._train_before = self._validation_before = {}

    def on_fit_start(self, trainer, pl_module):
        self._watch = watch(pl_module, **self._options)
        _safely(self._describe, trainer, pl_module)

    def on_train_epoch_start(self, trainer, pl_module):
        self._train_before = dict(trainer.callback_metrics)

    def on_train_epoch_end(self, trainer, pl_module):
        _safely(self._pass_on, trainer, self._train_before, self._validation_before)
        sessions.current().meta({"epochs": trainer.current_epoch + 1})

    def on_validation_start(self, trainer, pl_module):
        self._validation_before = dict(trainer.callback_metrics)

    def on_validation_end(self, trainer, pl_module):
        if not trainer.sanity_checking:
            _safely(self._pass_on, trainer, self._validation_before)
        self._validation_before = dict(trainer.callback_metrics)

    def on_fit_end(self, trainer, pl_module):
        self._close()

    def on_exception(self, trainer, pl_module, exception):
        self._close()

    def _close(self):
        if self._watch is not None:
            self._watch.close()
            self._watch = None

    def _pass_on(self, trainer, *before):
        """The metrics that are none of `before`'s: Lightning keeps old ones beside the new."""
        if has_writer(trainer.loggers):
            return
        old = {id(value) for metrics in before for value in metrics.values()}
        new = {tag: value for tag, value in trainer.callback_metrics.items() if id(value) not in old}
        pass_on(log, new, trainer.global_step)

    def _describe(self, trainer, pl_module):
        version = getattr(sys.modules.get("lightning") or sys.modules.get("pytorch_lightning"), "__version__", "")
        facts = dict(getattr(pl_module, "hparams", {}))
        facts.update(
            framework="lightning",
            framework_version=version,
            strategy=type(trainer.strategy).__name__,
            accumulate_grad_batches=trainer.accumulate_grad_batches,
            gradient_clip_val=trainer.gradient_clip_val or 0,
            max_epochs=trainer.max_epochs if trainer.max_epochs is not None else -1,
        )
        sessions.current().meta(facts)


def _safely(function, *arguments):
    try:
        function(*arguments)
    except Exception as error:
        notices.say_once("the Lightning callback could not tell all it knows (%s: %s)" % (type(error).__name__, error))
