"""Validation passes, and whether the model was in train() during them.

Two things give a pass away without touching the model. A DataLoader that is asked for batches with gradients switched off
feeds a validation; and a BatchNorm whose count of batches has changed inside a `no_grad` or `inference_mode` block was in train
mode there. What happened between two backward calls is one pass. A block of which there is one at every step (a generator's
samples for its discriminator, a teacher) belongs to training.
"""

import sys
import weakref

#: Passes of the same kind in a row that are told; a loop that validates after each step would otherwise fill the ring.
TOLD_IN_A_ROW = 4


class ValidationProbe:
    """The phases probe tells of each batch that is fetched, the loss probe of each backward call."""

    name = "validation"

    def install(self, recorder):
        self._recorder = recorder
        self._fetched = 0
        self._in_train_mode = False
        self._learned = False  # a BatchNorm has, in a block without gradients
        self._learned_last = False  # also before the backward call before
        self._depth = 0  # of blocks without gradients
        self._counts = []  # weak references to the counts of batches of BatchNorms, one an optimizer
        self._watching = False
        self._before = []
        self._last, self._in_a_row = None, 0
        recorder.roster.listeners = [self._look]
        self._look()

    def _look(self):
        """The tensors have new names: perhaps those of another model. Only where one has a BatchNorm are blocks watched: torch
        itself enters some five at a step, and each would pay two calls.
        """
        recorder = self._recorder
        first = [next(_counts(entry), None) for entry in recorder.roster]
        self._counts = [weakref.ref(count) for count in first if count is not None]
        if not self._counts or self._watching:
            return
        self._watching = True
        torch, ledger = sys.modules["torch"], recorder.session.ledger
        entered, left = recorder.hook(self.name, self._entered), recorder.hook(self.name, self._left)
        for block in (torch.no_grad, torch.inference_mode):
            ledger.wrap(block, "__enter__", lambda original: _entering(original, entered))
            ledger.wrap(block, "__exit__", lambda original: _leaving(original, left))

    def at_fetch(self):
        """A loader is about to be asked for a batch with gradients switched off."""
        self._fetched += 1
        self._in_train_mode = self._recorder.by_name["modes"].any_training()

    def at_backward(self):
        """Training goes on."""
        fetched, self._fetched = self._fetched, 0
        learned, self._learned = self._learned, False
        again, self._learned_last = learned and self._learned_last, learned
        if fetched < 2 and (not learned or again):  # a pass of one batch asks twice: the second time to hear that it was all
            return
        in_train_mode = learned or self._in_train_mode
        self._in_a_row = self._in_a_row + 1 if self._last == in_train_mode else 1
        self._last = in_train_mode
        if self._in_a_row <= TOLD_IN_A_ROW:
            self._recorder.session.event("validation_pass", self._recorder.iteration, float(in_train_mode), "")

    def _entered(self):
        self._depth += 1
        if self._depth == 1:
            counts = [reference() for reference in self._counts]
            self._before = [(count, count._version) for count in counts if count is not None]

    def _left(self):
        if not self._depth:
            return  # of a block that was entered before they were watched
        self._depth -= 1
        if self._depth == 0:
            self._learned = self._learned or any(count._version != version for count, version in self._before)
            self._before = []


def _counts(entry):
    # The running mean itself will not do: the kernel writes it without a new version.
    for root in entry.roots:
        module = root()
        for inner in module.modules() if module is not None else ():
            count = getattr(inner, "num_batches_tracked", None)
            if count is not None:
                yield count


def _entering(original, entered):
    def entering(self, *args, **kwargs):
        result = original(self, *args, **kwargs)
        entered()
        return result

    return entering


def _leaving(original, left):
    def leaving(self, *args, **kwargs):
        left()
        return original(self, *args, **kwargs)

    return leaving
