"""What the bytes between the hooks and the daemon mean: layouts, limits and encoding.

This is the only module of the hooks that the daemon may import. It needs the standard library alone and Python 3.9 syntax,
because it also travels inside an attach payload. The decoder of these bytes, which must expect an enemy, is the daemon's.

Two paths join the halves (docs/how-it-works.md):

* the **ring**: a sealed memfd of fixed slots, written by the training thread, one or more records a step;
* the **control socket**: AF_UNIX SOCK_SEQPACKET, JSON objects, written by a background thread of the hooks.

All integers are little-endian. Every name of a field carries its unit; fields are appended, never reordered.
"""

import struct
import zlib

WIRE_VERSION = 1

# ---------------------------------------------------------------------------------------------------------------- ring
RING_MAGIC = b"GWRING01"
RING_HEADER_BYTES = 4096
#: magic, wire version, slot count, slot bytes, header bytes, ring id
RING_HEADER = struct.Struct("<8sIIIIQ")
#: Word (u64) index of the last published sequence number: a cache line of its own.
HEAD_WORD = 8
#: Word index of the first drop counter; one u64 for each of DROP_REASONS.
DROPS_WORD = 16
#: Why the hooks themselves lost a record; `overwritten` is counted by the reader, from gaps in the sequence.
DROP_REASONS = ("too_large", "busy_writer", "not_ready", "probe_fault")

DEFAULT_SLOTS = 1024
DEFAULT_SLOT_BYTES = 16384
MAX_SLOTS = 8192
MAX_SLOT_BYTES = 1 << 20
MAX_RING_BYTES = 64 << 20

#: Slot: sequence (u64, 0 = invalid, published last), then SLOT_META, then the payload.
#: SLOT_META: CLOCK_MONOTONIC ns, payload bytes, crc32, kind, flags (0), reserved (0)
SLOT_META = struct.Struct("<QIIHHI")
SLOT_HEADER_BYTES = 8 + SLOT_META.size
#: crc32 of more than this gives up the GIL (measured: p99 19 us -> 7.2 ms beside one busy thread), so it is fed in pieces.
CRC_PIECE_BYTES = 5120


def slot_crc(sequence, monotonic_ns, kind, payload):
    """crc32 (u32) over sequence, time, kind and payload of a slot; `payload` is a bytes-like object of itemsize 1."""
    crc = zlib.crc32(struct.pack("<QQH", sequence, monotonic_ns, kind))
    size = len(payload)
    if size <= CRC_PIECE_BYTES:
        return zlib.crc32(payload, crc)
    view = memoryview(payload)
    for start in range(0, size, CRC_PIECE_BYTES):
        crc = zlib.crc32(view[start : start + CRC_PIECE_BYTES], crc)
    return crc


# ------------------------------------------------------------------------------------------------------------- records
KIND_STEP = 1
KIND_TENSORS = 2
KIND_HISTOGRAMS = 3
KIND_EVENT = 4
KIND_END = 5

#: KIND_STEP: step, optimizer index, flags, number of fields, number of groups, mask of the fields that are present;
#: then float64[fields], then per group float64 learning rate and float64 weight decay (NaN: the group has none).
#: A step's TENSORS and HISTOGRAMS records come before its STEP record, which commits them.
STEP_HEAD = struct.Struct("<QHHHHQ")
#: One value each, float64, in this order. Absent is told by the mask, since NaN is a legal value.
STEP_FIELDS = (
    "loss",  # divided by the loss scale; mean over the step's micro-batches
    "micro_batches",  # backward calls since this optimizer's last step
    "loss_scale",  # GradScaler's scale during this step; absent without a scaler
    "step_seconds",  # since this process's previous optimizer step (of any optimizer)
    "data_seconds",
    "forward_seconds",
    "backward_seconds",
    "optimizer_seconds",
    "other_seconds",
    "grad_norm",  # L2 over the finite entries of all gradients: unscaled, before clipping
    "grad_norm_clipped",  # the same as the optimizer saw it, when something clipped in between
    "grad_absmax",
    "grad_zero_ratio",
    "grad_nonfinite_count",
    "grad_underflow_ratio",  # share of non-zero entries that fp16 would flush to zero at the present loss scale
    "weight_norm",
    "update_ratio",  # L2 of the update over L2 of the weights before it
    "autocast_ratio",  # share of the forward time spent under autocast
    "autocast_dtype",  # index into AUTOCAST_DTYPES
    "skipped",  # 1 when the loss scaler skipped the update
    "loss_scale_backoffs",  # since the previous record
    "clip_max_norm",
    "clipped_while_scaled",  # 1 when clipping ran on gradients that still carried the loss scale
    "closure_calls",
    "tensors_without_gradient",  # of those that want one
    "torch_allocated_bytes",
    "torch_reserved_bytes",
    "torch_allocated_peak_bytes",
    "torch_device_index",
    "training_mode",  # 1 when the model was in train() at backward, 0 in eval()
    "hook_seconds",  # time the hooks took on the training thread since the previous record
    "overhead_ratio",  # smoothed share of the step time, as the governor sees it
    "thinning_level",  # index into THINNING
)
STEP_COMPLETE = 1  # flag: the hooks expect no further optimizer in this step
STEP_FIELD_INDEX = {name: index for index, name in enumerate(STEP_FIELDS)}
AUTOCAST_DTYPES = ("none", "float16", "bfloat16", "float32")
#: What the governor has thinned so far, in this order; the global norm and the non-finite count are never thinned.
THINNING = ("nothing", "update_ratio", "histograms", "layers")
MAX_GROUPS = 64

#: KIND_TENSORS: step, optimizer, family, version of the name table, first index, count, mask of measured columns;
#: then float32[count][8] in the order of TENSOR_COLUMNS. A row of NaN: that tensor had no gradient (or cannot be read).
TENSORS_HEAD = struct.Struct("<QHHIIII")
#: Statistics of one tensor over its finite entries, in true (unscaled) units; `nonfinite_count` and the shares are of all.
TENSOR_COLUMNS = ("norm", "absmax", "mean_abs", "mean", "std", "zero_ratio", "nonfinite_count", "underflow_ratio")
#: second_moment: only `norm` is measured, the gradient's norm over the root of the sum of Adam's second moment.
FAMILIES = ("gradient", "weight", "update", "second_moment")

#: KIND_HISTOGRAMS: step, optimizer, family, version of the name table, first index, count, exponent of bucket 0 (i32);
#: then u32[count][64]. Bucket i counts finite entries with 2**(e0+i) <= |x| < 2**(e0+i+1); bucket 0 takes all that is
#: smaller, zeros included, and bucket 63 all that is larger.
HISTOGRAMS_HEAD = struct.Struct("<QHHIIIi")
HISTOGRAM_BUCKETS = 64
HISTOGRAM_FIRST_EXPONENT = -48

#: KIND_EVENT: step, code (index into EVENT_CODES), a value; then UTF-8 text up to MAX_EVENT_TEXT_BYTES.
EVENT_HEAD = struct.Struct("<QHd")
EVENT_CODES = (
    "probe_disabled",
    "thinned",
    "restored",
    "notice",
    "graph_capture",
    "optimizer_seen",
    "gradients_kept",  # value 1: no longer cleared between steps, from `step` on; 0: cleared again; text: the tensor
    "validation_pass",  # value 1: in train mode, 0: in eval mode; after `step`
    "out_of_memory",  # text: the error's first line
    "untrained_parameters",  # value: tensors of the model with gradients that no optimizer holds; text: the first one
)
MAX_EVENT_TEXT_BYTES = 512

#: KIND_END: last step, exit status known to the hooks (0: interpreter exit, 1: uncaught exception, 2: detached).
END_HEAD = struct.Struct("<QI")
END_REASONS = ("exit", "exception", "detached")

# ------------------------------------------------------------------------------------------------------- control socket
#: One JSON object a message, UTF-8, key "t" names it. See docs/how-it-works.md for each message's fields.
MAX_MESSAGE_BYTES = 64 * 1024
MAX_MEDIA_BYTES = 16 << 20
MAX_NAME_CHARS = 256
#: Names of tensors a run may have; the rest are folded into OTHER_NAME and counted.
MAX_TENSORS = 2000
OTHER_NAME = "_other"
HANDSHAKE_TIMEOUT_SECONDS = 2.0
#: hooks -> daemon; those with "n" (a counter from 1 in each process) are kept by the hooks until acknowledged.
CLIENT_MESSAGES = ("hello", "names", "scalars", "media", "meta", "bye")
#: daemon -> hooks: fixed verbs, never code.
DAEMON_MESSAGES = ("welcome", "ack", "set", "detach", "refuse", "amp_probe", "trace", "snapshot")
#: Which name table a "names" message extends.
NAME_TABLES = ("tensor", "group", "optimizer")
#: What a "media" message carries.
MEDIA_KINDS = ("images", "histogram", "figure", "text", "feature_maps", "trace", "memory_snapshot")


def pack_step(step, optimizer, flags, mask, fields, groups):
    """The payload of a KIND_STEP record.

    `fields`: bytes-like float64[len(STEP_FIELDS)]; `mask`: bit i set when field i is present; `groups`: flat sequence of
    float, (learning rate, weight decay) for each parameter group, at most MAX_GROUPS groups. Raises struct.error on misuse.
    """
    count = len(groups) // 2
    head = STEP_HEAD.pack(step, optimizer, flags, len(STEP_FIELDS), count, mask)
    return head + bytes(fields) + struct.pack("<%dd" % len(groups), *groups)


def rows_per_slot(row_bytes, head_bytes, slot_bytes=DEFAULT_SLOT_BYTES):
    """How many rows of `row_bytes` fit behind a head in one slot: a longer table is split by range of tensors."""
    return max(0, (slot_bytes - SLOT_HEADER_BYTES - head_bytes) // row_bytes)
