"""What a run's event files hold already: enough to write nothing twice, and every tag in rising steps.

TensorBoard drops the points it has when a tag's steps go back, and of a tag it shows only the first kind of data.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from gpuwatch.exporters.hparams import SESSION_END_TAG
from gpuwatch.exporters.step_summary import is_ours, is_step_tag

if TYPE_CHECKING:
    from tensorboard.compat.proto.event_pb2 import Event

_MAX_STEP = 1 << 62
_KINDS = {"simple_value": "scalar", "histo": "histogram", "image": "image", "tensor": "text"}


class Written(msgspec.Struct):
    """The state of one run's files; kept in the checkpoint beside them."""

    last_step: int = 0  # of the steps that our own records made
    tags: dict[str, tuple[str, int]] = {}  # tag of the job's own data, or of a finding: (its kind, its last step)
    rates: dict[str, float] = {}  # learning rates and weight decays of the first step: what the run was started with
    layout: bool = False
    ended: bool = False

    def place(self, tag: str, kind: str, step: int, max_tags: int) -> str | None:
        """The tag under which a point of a step is to be written, `tag` or one beside it; None when it has no place."""
        known = self.tags.get(tag)
        if known is not None and known[0] != kind:
            tag = f"{tag}/{kind}"
            known = self.tags.get(tag)
        rises = known is None or step > known[1]
        if not -_MAX_STEP < step < _MAX_STEP or not rises or (known is None and len(self.tags) >= max_tags):
            return None
        self.tags[tag] = (kind, step)
        return tag

    def place_own(self, tag: str, kind: str, step: int, max_tags: int) -> str | None:
        """`place` for what the job logs under a tag of its choice.

        Ours are ours: its `train/loss` becomes `logged/train/loss`, since one curve has one step axis.
        """
        return self.place(f"logged/{tag}" if is_ours(tag, kind) else tag, kind, step, max_tags)

    def note(self, event: Event) -> None:
        """Take down that `event` was found in a file."""
        tags = {value.tag: _KINDS.get(value.WhichOneof("value"), "") for value in event.summary.value}
        if SESSION_END_TAG in tags:
            self.ended = True
        elif any(is_step_tag(tag) for tag in tags):
            self.last_step = max(self.last_step, event.step)
            self.layout = True
        else:
            for tag, kind in tags.items():
                self.tags[tag] = (kind, event.step)
