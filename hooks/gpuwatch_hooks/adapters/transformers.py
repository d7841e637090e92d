"""For Hugging Face's Trainer: `Trainer(callbacks=[GpuwatchCallback()])`.

The hooks see such a job without this, and see more than its log: Trainer reports the running mean of the losses and puts
that mean in the place of NaN (`logging_nan_inf_filter`), and its gradient norm is absent without clipping. So loss, gradient
norm and learning rate are taken at their source; the callback adds evaluation metrics, epochs and settings.
"""

from transformers import TrainerCallback

from .. import notices
from .. import session as sessions
from ..log import log
from ..watch import watch
from .metrics import pass_on

AT_THEIR_SOURCE = ("loss", "grad_norm", "learning_rate")
_SETTINGS = (
    "gradient_accumulation_steps",
    "learning_rate",
    "logging_nan_inf_filter",
    "max_grad_norm",
    "max_steps",
    "num_train_epochs",
    "per_device_train_batch_size",
    "seed",
    "warmup_steps",
    "weight_decay",
)


class GpuwatchCallback(TrainerCallback):
    """Watches one Trainer.train; `name`, `every` and `histograms` as gpuwatch.watch takes them. Nothing here raises."""

    def __init__(self, name=None, every=1, histograms=True):
        self._options = {"name": name, "every": every, "histograms": histograms}
        self._watch = None

    def on_train_begin(self, args, state, control, model=None, optimizer=None, **kwargs):
        self._watch = watch(model, optimizer, **self._options)
        _safely(_describe, args, model)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "tensorboard" not in (args.report_to or ()):  # else its SummaryWriter is mirrored already
            _safely(pass_on, log, logs or {}, state.global_step, _tag, AT_THEIR_SOURCE)

    def on_epoch_end(self, args, state, control, **kwargs):
        sessions.current().meta({"epochs": round(state.epoch or 0)})

    def on_train_end(self, args, state, control, **kwargs):
        if self._watch is not None:
            self._watch.close()
            self._watch = None


def _tag(key):
    """The tag under which Trainer's own TensorBoard callback writes this value."""
    for prefix in ("eval_", "test_"):
        if key.startswith(prefix):
            return prefix[:-1] + "/" + key[len(prefix) :]
    return "train/" + key


def _describe(args, model):
    import transformers

    facts = {name: getattr(args, name) for name in _SETTINGS if isinstance(getattr(args, name, None), (int, float, str))}
    facts.update(
        framework="transformers",
        framework_version=transformers.__version__,
        model=type(model).__name__,
    )
    sessions.current().meta(facts)


def _safely(function, *arguments):
    try:
        function(*arguments)
    except Exception as error:
        notices.say_once("the Trainer callback could not tell all it knows (%s: %s)" % (type(error).__name__, error))
