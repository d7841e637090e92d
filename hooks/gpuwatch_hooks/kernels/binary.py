"""Compiled kernels as the driver takes them: code, and how each function in it is launched."""

import collections

#: `symbol` is its name in the code; `spare_arguments`: zeros to be handed over after the arguments that we know of.
Kernel = collections.namedtuple("Kernel", ("symbol", "threads", "shared_bytes", "spare_arguments"))

#: One module: `code` (a cubin or PTX), `kernels` {our name: Kernel}.
Binary = collections.namedtuple("Binary", ("code", "kernels"))
