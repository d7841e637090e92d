"""The followed weights of an optimizer before its step, kept on their device by the fused kernel, and how far they moved."""

from .kernels import followed
from .measured import Measured


class FollowedWeights:
    """What was kept. Made by `keep`; `compare` once, after the step."""

    def __init__(self, selection, fused, kept, device):
        self._selection, self._fused, self._kept, self._device = selection, fused, kept, device

    def compare(self, part, places, parameters):
        """(weights before, updates): two Measured whose L2 norms arrive with the part. None where they cannot be compared."""
        if any(parameter.device != self._device for parameter in parameters):
            return None  # moved by the optimizer: the kernel must not be given a host's addresses
        try:
            answer = self._fused.followed.compare(self._kept, parameters)
        except self._fused.errors as error:
            self._selection.retire(self._device, error)
            return None
        if answer is None:
            return None
        weights, updates = Measured(), Measured()

        def arrived(raw):
            moved, before, bad = followed.decode(raw)
            weights.take_norms(places, before, {})
            updates.take_norms(places, moved, {place: int(count) for place, count in enumerate(bad) if count})

        for measured in (weights, updates):
            measured.count(places, [parameter.numel() for parameter in parameters])
        part.read_bytes(answer, arrived)
        return weights, updates


def keep(selection, parameters, strides):
    """A FollowedWeights of every k-th entry of plain parameters, or None: there is no fused kernel for all of them."""
    if selection is None or not parameters or not selection.concerns(parameters[0]):
        return None
    device = parameters[0].device
    if any(parameter.device != device for parameter in parameters):
        return None
    fused = selection.fused(device)
    if fused is None:
        return None
    try:
        kept = fused.followed.keep(parameters, strides)
    except fused.errors as error:
        selection.retire(device, error)
        return None
    return None if kept is None else FollowedWeights(selection, fused, kept, device)
