"""Which tensors of a name table are weight matrices: names and sizes are all that travels, so those must tell."""

from __future__ import annotations

import re

from gpuwatch.state.names import NameTable

_EMBEDDING = re.compile(r"(?:^|[._])(?:\w*emb\w*|wte|wpe|lut)(?:[._]|$)", re.IGNORECASE)
_GAIN = re.compile(r"(?:^|[._])(?:\w*norm\w*|bn\d*|ln_?\w{0,3}|gamma|beta|scale|bias\w*)(?:[._]|$)", re.IGNORECASE)
_MIN_NUMEL = 16


def matrices(names: NameTable) -> list[int]:
    """Indices, in order, of what looks like the weight of a linear layer or a convolution: no bias, gain or embedding."""
    sizes = dict(zip(names.names, names.numels, strict=False))  # another thread may be adding to them
    found = []
    for index, name in enumerate(names.names):
        if sizes[name] < _MIN_NUMEL or _EMBEDDING.search(name) or _GAIN.search(name):
            continue
        # A normalisation's gain is as long as its bias, whatever it is called; a matrix is longer.
        parent, _, _ = name.rpartition(".")
        if sizes[name] > sizes.get(f"{parent}.bias" if parent else "bias", 0):
            found.append(index)
    return found
