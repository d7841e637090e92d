"""Validation passes, and whether the model was in train() during them.

A DataLoader that is asked for batches with gradients switched off feeds a validation. What was asked for between two backward
calls is one pass.
"""

import sys

#: Passes of the same kind in a row that are told; a loop that validates after each step would otherwise fill the ring.
TOLD_IN_A_ROW = 4


class ValidationProbe:
    """The phases probe tells of each batch that is fetched, the loss probe of each backward call."""

    name = "validation"

    def install(self, recorder):
        self._recorder = recorder
        self._fetched = 0
        self._in_train_mode = False
        self._last, self._in_a_row = None, 0

    def at_fetch(self):
        """A loader is about to be asked for a batch."""
        if not sys.modules["torch"].is_grad_enabled():
            self._fetched += 1
            self._in_train_mode = self._recorder.by_name["modes"].any_training()

    def at_backward(self):
        """Training goes on."""
        if not self._fetched:
            return
        fetched, self._fetched = self._fetched, 0
        if fetched < 2:  # a pass of one batch asks twice: the second time to hear that there are no more
            return
        self._in_a_row = self._in_a_row + 1 if self._last == self._in_train_mode else 1
        self._last = self._in_train_mode
        if self._in_a_row <= TOLD_IN_A_ROW:
            text = "%d batches" % fetched
            self._recorder.session.event("validation_pass", self._recorder.iteration, float(self._last), text)
