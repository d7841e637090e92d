"""The fused statistics kernel in CUDA C, as text: compiled on the user's machine by NVRTC, and in the tests by the host's g++.

Two kernels. `gpuwatch_chunks` reads every entry once: a block takes one chunk of one tensor and leaves a Partial, and adds
its counts to the tensor's histogram. `gpuwatch_rows` merges the partials of each tensor, always in the same order, into a
row of wire.TENSOR_COLUMNS as float64. There are no floating-point atomics, so results are the same in every run.

Precision: a chunk is summed in float32, 8 entries at a time into one sum a thread, then in float64 over threads and chunks:
relative error below 1e-6. Where float32 squares would vanish or overflow, or where the entries lie so far from zero that a
deviation would drown in its own sums, the block reads its chunk again (from the cache), scaled by a power of two or centred.
"""

#: Threads of a block of either kernel; the tests compile the source with fewer, to emulate them quickly.
THREADS = 512
ROW_THREADS = 128
#: Bytes of the structures below, as chunks.py packs them.
TENSOR_BYTES, CHUNK_BYTES, PARTIAL_BYTES = 24, 16, 48
#: `kind` of a tensor, by the name of its torch dtype.
KINDS = {"float32": 0, "bfloat16": 1, "float16": 2}
CHUNKS, CHUNKS_HISTOGRAM, ROWS = "gpuwatch_chunks", "gpuwatch_chunks_histogram", "gpuwatch_rows"

SOURCE = r"""
typedef unsigned long long u64;
typedef unsigned int u32;
typedef unsigned short u16;

#ifndef THREADS
#define THREADS 512
#endif
#define WARPS (THREADS / 32)
#define ROW_THREADS 128
#define BUCKETS 64
#define FIRST_EXPONENT -48
// One column of counters for each lane: 32 lanes never meet in one bank, and one word is shared by the warps alone.
#define COLUMNS 32

#define ALL_LANES 0xffffffffu
#define SIGN_LESS 0x7fffffffu
#define INFINITE 0x7f800000u

struct Tensor { u64 numel; u32 first_chunk; u32 chunks; u32 kind; u32 stride; };
struct Chunk { u64 start; u32 count; u32 tensor; };
// Over the finite entries of one chunk; `centred`: sum of squared distances from the chunk's own mean.
struct Partial { double squares, magnitude, total, centred; u32 largest, zeros, bad, lost; };

__device__ __forceinline__ u32 bits_of(float x) { return __float_as_uint(x); }

// 2^exponent, from -126 to 127
__device__ __forceinline__ float power(int exponent) { return __uint_as_float((u32)(exponent + 127) << 23); }
__device__ __forceinline__ double wide_power(int exponent) {
  return __longlong_as_double((long long)(exponent + 1023) << 52);
}

#ifdef __CUDA_ARCH__
__device__ __forceinline__ float from_half(u16 half) {
  float x;
  asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(half));
  return x;
}
#else
__device__ __forceinline__ float from_half(u16 half) {
  u32 sign = (u32)(half & 0x8000) << 16, exponent = (half >> 10) & 31, fraction = half & 1023;
  if (exponent == 31) return __uint_as_float(sign | INFINITE | fraction << 13);
  if (exponent) return __uint_as_float(sign | (exponent + 112) << 23 | fraction << 13);
  float x = (float)fraction * power(-24);
  return sign ? -x : x;
}
#endif

// How each kind of tensor is read: single entries, and 16 bytes at a time.
template <int KIND> struct Format;
template <> struct Format<0> {
  enum { BYTES = 4, ENTRIES = 4 };
  static __device__ __forceinline__ float one(const void* data, u64 at) { return ((const float*)data)[at]; }
  static __device__ __forceinline__ void word(u32 bits, float* out) { out[0] = __uint_as_float(bits); }
};
template <> struct Format<1> {
  enum { BYTES = 2, ENTRIES = 8 };
  static __device__ __forceinline__ float one(const void* data, u64 at) {
    return __uint_as_float((u32)((const u16*)data)[at] << 16);
  }
  static __device__ __forceinline__ void word(u32 bits, float* out) {
    out[0] = __uint_as_float(bits << 16);
    out[1] = __uint_as_float(bits & 0xffff0000u);
  }
};
template <> struct Format<2> {
  enum { BYTES = 2, ENTRIES = 8 };
  static __device__ __forceinline__ float one(const void* data, u64 at) { return from_half(((const u16*)data)[at]); }
  static __device__ __forceinline__ void word(u32 bits, float* out) {
    out[0] = from_half((u16)(bits & 0xffffu));
    out[1] = from_half((u16)(bits >> 16));
  }
};

// Calls take.entries<N>(float[N]) for every entry of the chunk, once, by whichever thread; 16 bytes a load where aligned.
template <int KIND, typename Take>
__device__ __forceinline__ void each(const char* data, u32 count, Take& take) {
  typedef Format<KIND> F;
  u32 head = (u32)((16 - ((u64)data & 15)) & 15) / F::BYTES;
  if (head > count) head = count;
  const uint4* vectors = (const uint4*)(data + (u64)head * F::BYTES);
  u32 whole = (count - head) / F::ENTRIES;
#pragma unroll 2
  for (u32 i = threadIdx.x; i < whole; i += THREADS) {
    uint4 v = vectors[i];
    float x[F::ENTRIES];
    F::word(v.x, x);
    F::word(v.y, x + F::ENTRIES / 4);
    F::word(v.z, x + F::ENTRIES / 2);
    F::word(v.w, x + 3 * F::ENTRIES / 4);
    take.template entries<F::ENTRIES>(x);
  }
  u32 tail = head + whole * F::ENTRIES;
  for (u32 i = threadIdx.x; i < head + (count - tail); i += THREADS) {
    float x[1] = {F::one(data, i < head ? i : tail + (i - head))};
    take.template entries<1>(x);
  }
}

// The pass that always runs.
template <bool LOST, bool HISTOGRAM> struct First {
  float scale;
  u32 flushed;   // bits of the largest magnitude that fp16 would lose at the present loss scale
  u32* counters; // this lane's column
  float squares, magnitude, total;
  u32 largest, zeros, bad, lost;

  template <int N> __device__ __forceinline__ void entries(float* x) {
    u32 top = 0;
#pragma unroll
    for (int k = 0; k < N; k++) {
      x[k] *= scale;
      top = max(top, bits_of(x[k]) & SIGN_LESS);
    }
    if (top >= INFINITE) top = clean<N>(x);
    largest = max(largest, top);
    float s = 0.0f, m = 0.0f, t = 0.0f;
#pragma unroll
    for (int k = 0; k < N; k++) {
      u32 size = bits_of(x[k]) & SIGN_LESS;
      s = fmaf(x[k], x[k], s);
      m += fabsf(x[k]);
      t += x[k];
      zeros += size == 0;
      if (LOST) lost += size - 1u < flushed; // zero wraps around and is not below
      if (HISTOGRAM) atomicAdd(counters + bucket(size) * COLUMNS, 1u);
    }
    squares += s;
    magnitude += m;
    total += t;
  }

  static __device__ __forceinline__ int bucket(u32 size) {
    return min(max((int)(size >> 23) - (127 + FIRST_EXPONENT), 0), BUCKETS - 1);
  }

  // Rare: NaN and Inf become zeros that are counted as neither. Returns the largest of the rest.
  template <int N> __device__ __forceinline__ u32 clean(float* x) {
    u32 top = 0;
    for (int k = 0; k < N; k++) {
      u32 size = bits_of(x[k]) & SIGN_LESS;
      if (size < INFINITE) {
        top = max(top, size);
        continue;
      }
      x[k] = 0.0f;
      bad += 1u;
      zeros -= 1u; // modulo 2^32: it is about to be counted
      if (HISTOGRAM) atomicAdd(counters, ALL_LANES);
    }
    return top;
  }
};

// The same sums of x * unit, a power of two.
struct Scaled {
  float scale, unit;
  float squares, magnitude, total;
  template <int N> __device__ __forceinline__ void entries(float* x) {
#pragma unroll
    for (int k = 0; k < N; k++) {
      float y = x[k] * scale;
      if ((bits_of(y) & SIGN_LESS) >= INFINITE) continue;
      y *= unit;
      squares = fmaf(y, y, squares);
      magnitude += fabsf(y);
      total += y;
    }
  }
};

// Sums about a centre.
struct Centred {
  float scale, unit, centre;
  float squares, total;
  template <int N> __device__ __forceinline__ void entries(float* x) {
#pragma unroll
    for (int k = 0; k < N; k++) {
      float y = x[k] * scale;
      if ((bits_of(y) & SIGN_LESS) >= INFINITE) continue;
      y = y * unit - centre;
      squares = fmaf(y, y, squares);
      total += y;
    }
  }
};

// Both are rare and kept out of the way: inlined into every variant they doubled the compile time and the registers.
template <int KIND> __device__ __noinline__ Scaled scaled_sums(const char* data, u32 count, float scale, float unit) {
  Scaled scaled = {scale, unit, 0.0f, 0.0f, 0.0f};
  each<KIND>(data, count, scaled);
  return scaled;
}
template <int KIND>
__device__ __noinline__ Centred centred_sums(const char* data, u32 count, float scale, float unit, float centre) {
  Centred about = {scale, unit, centre, 0.0f, 0.0f};
  each<KIND>(data, count, about);
  return about;
}

struct Block {
  double sums[3][WARPS];
  u32 largest[WARPS], zeros[WARPS], bad[WARPS], lost[WARPS];
  double total[3];
  u32 all[4];
};

// Sums of up to three values over the block, in float64, in the same order every time; every thread gets them.
__device__ __noinline__ void block_sums(Block& block, float a, float b, float c) {
  double x = a, y = b, z = c;
  for (int step = 16; step; step >>= 1) {
    x += __shfl_down_sync(ALL_LANES, x, step);
    y += __shfl_down_sync(ALL_LANES, y, step);
    z += __shfl_down_sync(ALL_LANES, z, step);
  }
  u32 warp = threadIdx.x / 32;
  if (threadIdx.x % 32 == 0) {
    block.sums[0][warp] = x;
    block.sums[1][warp] = y;
    block.sums[2][warp] = z;
  }
  __syncthreads();
  if (threadIdx.x < 3) {
    double sum = 0.0;
    for (u32 i = 0; i < WARPS; i++) sum += block.sums[threadIdx.x][i];
    block.total[threadIdx.x] = sum;
  }
  __syncthreads();
}

__device__ __forceinline__ void block_counts(Block& block, u32 largest, u32 zeros, u32 bad, u32 lost) {
  for (int step = 16; step; step >>= 1) {
    largest = max(largest, __shfl_down_sync(ALL_LANES, largest, step));
    zeros += __shfl_down_sync(ALL_LANES, zeros, step);
    bad += __shfl_down_sync(ALL_LANES, bad, step);
    lost += __shfl_down_sync(ALL_LANES, lost, step);
  }
  u32 warp = threadIdx.x / 32;
  if (threadIdx.x % 32 == 0) {
    block.largest[warp] = largest;
    block.zeros[warp] = zeros;
    block.bad[warp] = bad;
    block.lost[warp] = lost;
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    u32 all[4] = {0, 0, 0, 0};
    for (u32 i = 0; i < WARPS; i++) {
      all[0] = max(all[0], block.largest[i]);
      all[1] += block.zeros[i];
      all[2] += block.bad[i];
      all[3] += block.lost[i];
    }
    for (int k = 0; k < 4; k++) block.all[k] = all[k];
  }
  __syncthreads();
}

// One chunk. `counters` are the block's own, null without a histogram.
template <int KIND, bool LOST, bool HISTOGRAM>
__device__ __forceinline__ void measure(const char* data, u32 count, Partial* out, float scale, u32 flushed, Block& block,
                                        u32* counters) {
  First<LOST, HISTOGRAM> first = {scale, flushed, counters + threadIdx.x % COLUMNS, 0.0f, 0.0f, 0.0f, 0u, 0u, 0u, 0u};
  each<KIND>(data, count, first);
  block_counts(block, first.largest, first.zeros, first.bad, first.lost);
  block_sums(block, first.squares, first.magnitude, first.total);
  u32 largest = block.all[0], bad = block.all[2];
  double squares = block.total[0], magnitude = block.total[1], total = block.total[2];
  double finite = (double)(count - bad);
  int exponent = 0; // near that of the largest entry, where the chunk has to be read in another unit
  float unit = 1.0f;
  // Squares below 2^-80 come near to float32's end at 2^-126, and 2^18 of those above 2^100 near to 2^128.
  if (largest != 0u && (largest < bits_of(power(-40)) || largest > bits_of(power(50)))) {
    exponent = min((int)(largest >> 23) - 127, 126); // -127 for denormals: it leaves them at 2^-22 or more
    unit = power(-exponent);
    Scaled scaled = scaled_sums<KIND>(data, count, scale, unit);
    block_sums(block, scaled.squares, scaled.magnitude, scaled.total);
    squares = block.total[0];
    magnitude = block.total[1];
    total = block.total[2];
  }
  double mean = finite > 0.0 ? total / finite : 0.0;
  double centred = squares - total * mean;
  if (centred < 0.1 * squares) {
    Centred about = centred_sums<KIND>(data, count, scale, unit, (float)mean);
    block_sums(block, about.squares, about.total, 0.0f);
    double off = block.total[1];
    centred = block.total[0] - off * off / finite;
    total = finite * (double)(float)mean + off;
    if (centred < 0.0) centred = 0.0;
  }
  if (threadIdx.x == 0) {
    double back = wide_power(exponent);
    Partial partial = {squares * back * back, magnitude * back, total * back, centred * back * back,
                       largest, block.all[1], bad, block.all[3]};
    *out = partial;
  }
}

template <bool HISTOGRAM>
__device__ __forceinline__ void chunk_of(const u64* pointers, const Tensor* tensors, const Chunk* chunks, Partial* partials,
                                         u32* histograms, const double* scale, const double* threshold) {
  __shared__ Block block;
  __shared__ u32 counters[HISTOGRAM ? BUCKETS * COLUMNS : 1];
  Chunk chunk = chunks[blockIdx.x];
  u32 kind = tensors[chunk.tensor].kind;
  const char* data = (const char*)pointers[chunk.tensor] + chunk.start * (kind == 0 ? 4 : 2);
  Partial* out = partials + blockIdx.x;
  float factor = scale ? (float)*scale : 1.0f;
  u32 flushed = threshold ? bits_of(__double2float_rd(*threshold)) : 0u;
  if (HISTOGRAM) {
    for (u32 i = threadIdx.x; i < BUCKETS * COLUMNS; i += THREADS) counters[i] = 0u;
    __syncthreads();
  }
#define MEASURE(KIND)                                                                             \
  if (threshold) measure<KIND, true, HISTOGRAM>(data, chunk.count, out, factor, flushed, block, counters); \
  else measure<KIND, false, HISTOGRAM>(data, chunk.count, out, factor, flushed, block, counters);
  if (kind == 0) { MEASURE(0) } else if (kind == 1) { MEASURE(1) } else { MEASURE(2) }
#undef MEASURE
  if (HISTOGRAM) { // block_sums has brought all threads here
    for (u32 i = threadIdx.x; i < BUCKETS; i += THREADS) {
      u32 sum = 0u;
      for (u32 column = 0; column < COLUMNS; column++) sum += counters[i * COLUMNS + (i + column) % COLUMNS];
      if (sum) atomicAdd(histograms + (u64)chunk.tensor * BUCKETS + i, sum); // whole numbers: the order does not matter
    }
  }
}

// Blocks on one processor at a time: 3 and 2 leave 40 and 64 registers a thread, without spilling (sm_80 to sm_120).
extern "C" __global__ void __launch_bounds__(THREADS, 3) gpuwatch_chunks(
    const u64* pointers, const Tensor* tensors, const Chunk* chunks, Partial* partials, u32* histograms, const double* scale,
    const double* threshold) {
  chunk_of<false>(pointers, tensors, chunks, partials, histograms, scale, threshold);
}

extern "C" __global__ void __launch_bounds__(THREADS, 2) gpuwatch_chunks_histogram(
    const u64* pointers, const Tensor* tensors, const Chunk* chunks, Partial* partials, u32* histograms, const double* scale,
    const double* threshold) {
  chunk_of<true>(pointers, tensors, chunks, partials, histograms, scale, threshold);
}

// Sum over the block of a row: every thread gets it.
__device__ __forceinline__ double row_sum(double* shared, double x) {
  __syncthreads();
  shared[threadIdx.x] = x;
  for (u32 half = ROW_THREADS / 2; half; half >>= 1) {
    __syncthreads();
    if (threadIdx.x < half) shared[threadIdx.x] += shared[threadIdx.x + half];
  }
  __syncthreads();
  return shared[0];
}

// One block for each tensor. Columns: norm, absmax, mean_abs, mean, std, zero_ratio, nonfinite_count, underflow_ratio.
extern "C" __global__ void __launch_bounds__(ROW_THREADS) gpuwatch_rows(
    const Tensor* tensors, const Chunk* chunks, const Partial* partials, double* rows, const double* threshold) {
  __shared__ double shared[ROW_THREADS];
  __shared__ u32 tops[ROW_THREADS];
  Tensor tensor = tensors[blockIdx.x];
  const Partial* mine = partials + tensor.first_chunk;
  double squares = 0.0, magnitude = 0.0, total = 0.0, zeros = 0.0, bad = 0.0, lost = 0.0;
  u32 largest = 0u;
  for (u32 i = threadIdx.x; i < tensor.chunks; i += ROW_THREADS) {
    Partial p = mine[i];
    squares += p.squares;
    magnitude += p.magnitude;
    total += p.total;
    zeros += (double)p.zeros;
    bad += (double)p.bad;
    lost += (double)p.lost;
    largest = max(largest, p.largest);
  }
  tops[threadIdx.x] = largest;
  squares = row_sum(shared, squares);
  magnitude = row_sum(shared, magnitude);
  total = row_sum(shared, total);
  zeros = row_sum(shared, zeros);
  bad = row_sum(shared, bad);
  lost = row_sum(shared, lost);
  double finite = (double)tensor.numel - bad, mean = finite > 0.0 ? total / finite : 0.0, centred = 0.0;
  for (u32 i = threadIdx.x; i < tensor.chunks; i += ROW_THREADS) {
    Partial p = mine[i];
    double entries = (double)(chunks[tensor.first_chunk + i].count - p.bad);
    double away = entries > 0.0 ? p.total / entries - mean : 0.0;
    centred += p.centred + entries * away * away;
  }
  centred = row_sum(shared, centred);
  if (threadIdx.x == 0) {
    for (u32 i = 1; i < ROW_THREADS; i++) largest = max(largest, tops[i]);
    double* row = rows + (u64)blockIdx.x * 8;
    double nonzero = finite - zeros;
    row[0] = sqrt(squares);
    row[1] = (double)__uint_as_float(largest);
    row[2] = finite > 0.0 ? magnitude / finite : 0.0;
    row[3] = mean;
    row[4] = finite > 0.0 ? sqrt(centred / finite) : 0.0;
    row[5] = tensor.numel ? zeros / (double)tensor.numel : 0.0;
    row[6] = bad;
    row[7] = !threshold ? __longlong_as_double(0x7ff8000000000000ll) : nonzero > 0.0 ? lost / nonzero : 0.0;
  }
}
"""
