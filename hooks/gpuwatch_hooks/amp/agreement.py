"""All ranks of a job or none: a rank that alone dropped a step would train another model from then on.

By the key-value store that torch.distributed has for itself. Each rank says whether it can; the first that has heard all of
them, or waited too long, decides for everybody, by one atomic operation.
"""

import datetime as dt
import sys

from .. import identity

#: The ranks of one job are at the same step, so this is how far they are apart within it.
PATIENCE_SECONDS = 10.0


def reason_against(ticket, own_reason):
    """Why this job is not probed, or None when every rank agrees. `own_reason`: this rank's, or None. Waits for the others."""
    rank, world_size = identity.ranks()
    if world_size == 1:
        return own_reason
    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return own_reason or "it has %d ranks without a process group of torch's, which could not agree" % world_size
    store = distributed.distributed_c10d._get_default_store()
    prefix = "gpuwatch/amp/%d/" % ticket
    store.set("%s%d" % (prefix, rank), own_reason or "yes")
    verdict = None
    try:
        keys = ["%s%d" % (prefix, other) for other in range(world_size)]
        store.wait(keys, dt.timedelta(seconds=PATIENCE_SECONDS))
        answers = [store.get(key).decode() for key in keys]
        verdict = next(("rank %d: %s" % (n, answer) for n, answer in enumerate(answers) if answer != "yes"), "yes")
    except RuntimeError:
        verdict = "some rank did not hear of it in time"
    decided = store.compare_set(prefix + "verdict", "", verdict).decode()
    return None if decided == "yes" else decided
