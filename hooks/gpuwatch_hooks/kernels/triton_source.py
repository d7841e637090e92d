"""The fused statistics kernel once more, in Triton, as text: for a machine whose torch comes without a usable NVRTC.

The same tables in, the same partials, rows and histograms out as cuda_source.py and cuda_updates.py; every argument is an
address as a 64-bit integer, 0 for none. Text, because it is compiled in a process of its own (triton_compiler.py), where
Triton can read its source, and because hooks that were attached to a job have no files.

Entries are read BLOCK at a time, 16 bytes a load where the chunk is aligned; a mask that is only known at run time would make
Triton load entry by entry, so whole blocks are read without one. Sums are float32 within a lane's share (256 entries at most)
and float64 beyond; the second looks at tiny, huge and off-centre chunks are those of cuda_source.py. The only atomics add
whole numbers, so results are the same bits in every run. Halves are widened by shifting or converting, which is exact.
"""

from . import cuda_source, cuda_updates

#: kernel -> (function of SOURCE, what is fixed when it is compiled, warps). 4 warps and 1,024 entries: 8 entries a thread.
KERNELS = {
    cuda_source.CHUNKS: ("chunks_of", {"HISTOGRAM": False}, 4),
    cuda_source.CHUNKS_HISTOGRAM: ("chunks_of", {"HISTOGRAM": True}, 4),
    cuda_source.ROWS: ("rows_of", {}, 4),
    cuda_updates.KEEP: ("keep", {}, 4),
    cuda_updates.COMPARE: ("compare", {}, 4),
    cuda_updates.CHANGES: ("changes_of", {}, 4),
}

SOURCE = r'''
import triton
import triton.language as tl

BLOCK = tl.constexpr(1024)
LANES = tl.constexpr(128)
BUCKETS = tl.constexpr(64)
FOLLOWED = tl.constexpr(4096)
SIGN_LESS = tl.constexpr(0x7FFFFFFF)
INFINITE = tl.constexpr(0x7F800000)
SMALL = tl.constexpr((127 - 40) << 23)  # bits of 2^-40: below it squares come near to the end of float32
LARGE = tl.constexpr((127 + 50) << 23)


@triton.jit
def read(address, offsets, mask, KIND: tl.constexpr, ALIGNED: tl.constexpr):
    """float32 entries at `offsets` of what lies at `address`; all of them and 16-byte aligned, or those of `mask`."""
    if KIND == 0:
        start = address.to(tl.pointer_type(tl.float32))
    elif KIND == 1:
        start = address.to(tl.pointer_type(tl.uint16))
    else:
        start = address.to(tl.pointer_type(tl.float16))
    if ALIGNED:
        raw = tl.load(tl.multiple_of(start, 16) + offsets)
    else:
        raw = tl.load(start + offsets, mask=mask, other=0)
    if KIND == 1:
        return (raw.to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    return raw.to(tl.float32)


@triton.jit
def sized(x):
    """Bits of the magnitude; those of NaN and Inf are INFINITE or more."""
    return x.to(tl.int32, bitcast=True) & SIGN_LESS


@triton.jit
def cleaned(x):
    return tl.where(sized(x) < INFINITE, x, 0.0)


@triton.jit
def power(exponent):
    """2^exponent as float32, from -126 to 127."""
    return ((exponent + 127) << 23).to(tl.float32, bitcast=True)


@triton.jit
def first_of(address, offsets, mask, scale, flushed, KIND: tl.constexpr, ALIGNED: tl.constexpr):
    x = read(address, offsets, mask, KIND, ALIGNED) * scale
    bits = sized(x)
    bad = bits >= INFINITE
    x = tl.where(bad, 0.0, x)
    bits = tl.where(bad, 0, bits)
    lost = ((bits - 1).to(tl.uint32, bitcast=True) < flushed).to(tl.int32)  # zero wraps around and is not below
    return x, bits, bad.to(tl.int32), lost


@triton.jit
def counted(bits):
    """How many of the lanes lie in which bucket; what is masked or not finite came as zero and is in the first."""
    return tl.histogram(tl.minimum(tl.maximum((bits >> 23) - (127 - 48), 0), BUCKETS - 1), BUCKETS)


@triton.jit
def first_pass(address, count, scale, flushed, KIND: tl.constexpr, HISTOGRAM: tl.constexpr):
    """Sums of squares, magnitudes and entries as float64; largest, non-zero, non-finite, lost; counts of 64 buckets."""
    lanes = tl.arange(0, BLOCK)
    squares = tl.zeros([BLOCK], tl.float32)
    magnitude = tl.zeros([BLOCK], tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    largest = tl.zeros([BLOCK], tl.int32)
    filled = tl.zeros([BLOCK], tl.int32)
    bad = tl.zeros([BLOCK], tl.int32)
    lost = tl.zeros([BLOCK], tl.int32)
    counts = tl.zeros([BUCKETS], tl.int32)
    whole = 0
    if address % 16 == 0:
        whole = count // BLOCK * BLOCK
    for start in range(0, whole, BLOCK):
        x, bits, b, l = first_of(address, start + lanes, None, scale, flushed, KIND, True)
        squares += x * x
        magnitude += tl.abs(x)
        total += x
        largest = tl.maximum(largest, bits)
        filled += (bits != 0).to(tl.int32)
        bad += b
        lost += l
        if HISTOGRAM:
            counts += counted(bits)
    for start in range(whole, count, BLOCK):
        offsets = start + lanes
        x, bits, b, l = first_of(address, offsets, offsets < count, scale, flushed, KIND, False)
        squares += x * x
        magnitude += tl.abs(x)
        total += x
        largest = tl.maximum(largest, bits)
        filled += (bits != 0).to(tl.int32)
        bad += b
        lost += l
        if HISTOGRAM:
            counts += counted(bits)
    return (
        tl.sum(squares.to(tl.float64)),
        tl.sum(magnitude.to(tl.float64)),
        tl.sum(total.to(tl.float64)),
        tl.max(largest),
        tl.sum(filled),
        tl.sum(bad),
        tl.sum(lost),
        counts,
    )


@triton.jit
def scaled_pass(address, count, scale, unit, KIND: tl.constexpr):
    """The same three sums of entries * unit."""
    lanes = tl.arange(0, BLOCK)
    squares = tl.zeros([BLOCK], tl.float32)
    magnitude = tl.zeros([BLOCK], tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    for start in range(0, count, BLOCK):
        offsets = start + lanes
        x = cleaned(read(address, offsets, offsets < count, KIND, False) * scale) * unit
        squares += x * x
        magnitude += tl.abs(x)
        total += x
    return tl.sum(squares.to(tl.float64)), tl.sum(magnitude.to(tl.float64)), tl.sum(total.to(tl.float64))


@triton.jit
def centred_pass(address, count, scale, unit, centre, KIND: tl.constexpr):
    """Squares and sum of the distances from `centre`."""
    lanes = tl.arange(0, BLOCK)
    squares = tl.zeros([BLOCK], tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    for start in range(0, count, BLOCK):
        offsets = start + lanes
        mask = offsets < count
        x = read(address, offsets, mask, KIND, False) * scale
        x = tl.where(mask & (sized(x) < INFINITE), x * unit - centre, 0.0)
        squares += x * x
        total += x
    return tl.sum(squares.to(tl.float64)), tl.sum(total.to(tl.float64))


@triton.jit
def chunk_at(chunks, place):
    """(first entry, number of entries, number of the tensor) of a chunk."""
    chunk = chunks + place.to(tl.int64) * 16
    start = tl.load(chunk.to(tl.pointer_type(tl.int64)))
    count = tl.load((chunk + 8).to(tl.pointer_type(tl.int32)))
    tensor = tl.load((chunk + 12).to(tl.pointer_type(tl.int32))).to(tl.int64)
    return start, count, tensor


@triton.jit
def field(tensors, place, OFFSET: tl.constexpr):
    return tl.load((tensors + place * 24 + OFFSET).to(tl.pointer_type(tl.int32)))


@triton.jit
def pointer_at(pointers, place):
    return tl.load((pointers + place * 8).to(tl.pointer_type(tl.int64)))


@triton.jit
def chunks_of(pointers, tensors, chunks, partials, histograms, scale, threshold, HISTOGRAM: tl.constexpr):
    """One program for each chunk."""
    program = tl.program_id(0).to(tl.int64)
    start, count, tensor = chunk_at(chunks, program)
    kind = field(tensors, tensor, 16)
    width = tl.where(kind == 0, 4, 2).to(tl.int64)
    address = pointer_at(pointers, tensor) + start * width
    factor = 1.0
    if scale != 0:
        factor = tl.load(scale.to(tl.pointer_type(tl.float64))).to(tl.float32)
    limit = 0
    if threshold != 0:
        exact = tl.load(threshold.to(tl.pointer_type(tl.float64)))
        limit = exact.to(tl.float32).to(tl.int32, bitcast=True)
        if exact.to(tl.float32).to(tl.float64) > exact:  # rounded down, as the comparison is with magnitudes at or below it
            limit -= 1
    flushed = limit.to(tl.uint32, bitcast=True)
    if kind == 0:
        squares, magnitude, total, largest, filled, bad, lost, counts = first_pass(
            address, count, factor, flushed, 0, HISTOGRAM
        )
    elif kind == 1:
        squares, magnitude, total, largest, filled, bad, lost, counts = first_pass(
            address, count, factor, flushed, 1, HISTOGRAM
        )
    else:
        squares, magnitude, total, largest, filled, bad, lost, counts = first_pass(
            address, count, factor, flushed, 2, HISTOGRAM
        )
    exponent = 0
    if (largest != 0) & ((largest < SMALL) | (largest > LARGE)):
        exponent = tl.minimum((largest >> 23) - 127, 126)
        unit = power(-exponent)
        if kind == 0:
            squares, magnitude, total = scaled_pass(address, count, factor, unit, 0)
        elif kind == 1:
            squares, magnitude, total = scaled_pass(address, count, factor, unit, 1)
        else:
            squares, magnitude, total = scaled_pass(address, count, factor, unit, 2)
    finite = (count - bad).to(tl.float64)
    mean = total / tl.maximum(finite, 1.0)
    centred = squares - total * mean
    if centred < 0.1 * squares:
        unit = power(-exponent)
        centre = mean.to(tl.float32)
        if kind == 0:
            away, off = centred_pass(address, count, factor, unit, centre, 0)
        elif kind == 1:
            away, off = centred_pass(address, count, factor, unit, centre, 1)
        else:
            away, off = centred_pass(address, count, factor, unit, centre, 2)
        centred = tl.maximum(away - off * off / tl.maximum(finite, 1.0), 0.0)
        total = finite * centre.to(tl.float64) + off
    back = ((exponent + 1023).to(tl.int64) << 52).to(tl.float64, bitcast=True)
    sums = (partials + program * 48).to(tl.pointer_type(tl.float64))
    tl.store(sums, squares * back * back)
    tl.store(sums + 1, magnitude * back)
    tl.store(sums + 2, total * back)
    tl.store(sums + 3, centred * back * back)
    whole = (partials + program * 48 + 32).to(tl.pointer_type(tl.int32))
    tl.store(whole, largest)
    tl.store(whole + 1, count - bad - filled)
    tl.store(whole + 2, bad)
    tl.store(whole + 3, lost)
    if HISTOGRAM:
        buckets = tl.arange(0, BUCKETS)
        lanes = (count + BLOCK - 1) // BLOCK * BLOCK
        counts -= tl.where(buckets == 0, lanes - count + bad, 0)
        tl.atomic_add((histograms + tensor * 256).to(tl.pointer_type(tl.int32)) + buckets, counts, sem="relaxed")


@triton.jit
def rows_of(tensors, chunks, partials, rows, threshold):
    """One program for each tensor: its partials merged into a row of eight float64."""
    program = tl.program_id(0).to(tl.int64)
    numel = tl.load((tensors + program * 24).to(tl.pointer_type(tl.int64))).to(tl.float64)
    first = field(tensors, program, 8).to(tl.int64)
    number = field(tensors, program, 12)
    squares = tl.zeros([LANES], tl.float64)
    magnitude = tl.zeros([LANES], tl.float64)
    total = tl.zeros([LANES], tl.float64)
    zeros = tl.zeros([LANES], tl.float64)
    bad = tl.zeros([LANES], tl.float64)
    lost = tl.zeros([LANES], tl.float64)
    largest = tl.zeros([LANES], tl.int32)
    lanes = tl.arange(0, LANES)
    for start in range(0, number, LANES):
        mask = start + lanes < number
        at = partials + (first + start + lanes) * 48
        sums = at.to(tl.pointer_type(tl.float64))
        whole = (at + 32).to(tl.pointer_type(tl.int32))
        squares += tl.load(sums, mask=mask, other=0.0)
        magnitude += tl.load(sums + 1, mask=mask, other=0.0)
        total += tl.load(sums + 2, mask=mask, other=0.0)
        largest = tl.maximum(largest, tl.load(whole, mask=mask, other=0))
        zeros += tl.load(whole + 1, mask=mask, other=0).to(tl.float64)
        bad += tl.load(whole + 2, mask=mask, other=0).to(tl.float64)
        lost += tl.load(whole + 3, mask=mask, other=0).to(tl.float64)
    bad_entries = tl.sum(bad)
    zero_entries = tl.sum(zeros)
    finite = numel - bad_entries
    divisor = tl.maximum(finite, 1.0)
    mean = tl.sum(total) / divisor
    centred = tl.zeros([LANES], tl.float64)
    for start in range(0, number, LANES):
        mask = start + lanes < number
        at = partials + (first + start + lanes) * 48
        sums = at.to(tl.pointer_type(tl.float64))
        chunk = (chunks + (first + start + lanes) * 16 + 8).to(tl.pointer_type(tl.int32))
        entries = tl.load(chunk, mask=mask, other=0) - tl.load((at + 40).to(tl.pointer_type(tl.int32)), mask=mask, other=0)
        inside = entries.to(tl.float64)
        away = tl.load(sums + 2, mask=mask, other=0.0) / tl.maximum(inside, 1.0) - mean
        centred += tl.load(sums + 3, mask=mask, other=0.0) + inside * away * away
    row = (rows + program * 64).to(tl.pointer_type(tl.float64))
    tl.store(row, tl.sqrt(tl.sum(squares)))
    tl.store(row + 1, tl.max(largest).to(tl.float32, bitcast=True).to(tl.float64))
    tl.store(row + 2, tl.sum(magnitude) / divisor)
    tl.store(row + 3, mean)
    tl.store(row + 4, tl.sqrt(tl.sum(centred) / divisor))
    tl.store(row + 5, zero_entries / tl.maximum(numel, 1.0))
    tl.store(row + 6, bad_entries)
    share = tl.sum(lost) / tl.maximum(finite - zero_entries, 1.0)
    tl.store(row + 7, tl.where(threshold == 0, float("nan"), share))


@triton.jit
def followed(address, offsets, mask, kind):
    """float32 entries at `offsets` of a tensor of `kind`."""
    if kind == 0:
        x = read(address, offsets, mask, 0, False)
    elif kind == 1:
        x = read(address, offsets, mask, 1, False)
    else:
        x = read(address, offsets, mask, 2, False)
    return x


@triton.jit
def keep(pointers, tensors, chunks, saved):
    """One program for each chunk of followed entries: they are copied to its places in `saved`."""
    program = tl.program_id(0).to(tl.int64)
    start, count, tensor = chunk_at(chunks, program)
    kind = field(tensors, tensor, 16)
    stride = field(tensors, tensor, 20).to(tl.int64)
    address = pointer_at(pointers, tensor)
    target = (saved + program * (4 * FOLLOWED)).to(tl.pointer_type(tl.float32))
    lanes = tl.arange(0, BLOCK)
    for begin in range(0, count, BLOCK):
        places = begin + lanes
        mask = places < count
        tl.store(target + places, followed(address, (start + places) * stride, mask, kind), mask=mask)


@triton.jit
def compare(pointers, tensors, chunks, saved, changes):
    """One program for each chunk: squares of the differences and of the kept weights, and what is not finite."""
    program = tl.program_id(0).to(tl.int64)
    start, count, tensor = chunk_at(chunks, program)
    kind = field(tensors, tensor, 16)
    stride = field(tensors, tensor, 20).to(tl.int64)
    address = pointer_at(pointers, tensor)
    source = (saved + program * (4 * FOLLOWED)).to(tl.pointer_type(tl.float32))
    lanes = tl.arange(0, BLOCK)
    squares = tl.zeros([BLOCK], tl.float64)
    before = tl.zeros([BLOCK], tl.float64)
    bad = tl.zeros([BLOCK], tl.int32)
    for begin in range(0, count, BLOCK):
        places = begin + lanes
        mask = places < count
        old = tl.load(source + places, mask=mask, other=0.0)
        now = followed(address, (start + places) * stride, mask, kind)
        kept = sized(old) < INFINITE
        both = kept & (sized(now) < INFINITE)
        wide = tl.where(kept, old, 0.0).to(tl.float64)
        change = tl.where(both, now, 0.0).to(tl.float64) - tl.where(both, old, 0.0).to(tl.float64)
        before += wide * wide
        squares += change * change
        bad += tl.where(both, 0, 1)
    at = changes + program * 24
    sums = at.to(tl.pointer_type(tl.float64))
    tl.store(sums, tl.sum(squares))
    tl.store(sums + 1, tl.sum(before))
    tl.store((at + 16).to(tl.pointer_type(tl.int32)), tl.sum(bad))


@triton.jit
def changes_of(tensors, changes, rows):
    """One program for each tensor: its chunks merged into a row of four float64."""
    program = tl.program_id(0).to(tl.int64)
    first = field(tensors, program, 8).to(tl.int64)
    number = field(tensors, program, 12)
    squares = tl.zeros([LANES], tl.float64)
    before = tl.zeros([LANES], tl.float64)
    bad = tl.zeros([LANES], tl.float64)
    lanes = tl.arange(0, LANES)
    for start in range(0, number, LANES):
        mask = start + lanes < number
        at = changes + (first + start + lanes) * 24
        sums = at.to(tl.pointer_type(tl.float64))
        squares += tl.load(sums, mask=mask, other=0.0)
        before += tl.load(sums + 1, mask=mask, other=0.0)
        bad += tl.load((at + 16).to(tl.pointer_type(tl.int32)), mask=mask, other=0).to(tl.float64)
    row = (rows + program * 32).to(tl.pointer_type(tl.float64))
    tl.store(row, tl.sqrt(tl.sum(squares)))
    tl.store(row + 1, tl.sqrt(tl.sum(before)))
    tl.store(row + 2, tl.sum(bad))
    tl.store(row + 3, 0.0)
'''
