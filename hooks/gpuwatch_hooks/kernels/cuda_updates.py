"""The kernels of the update ratio in CUDA C, to follow cuda_source.SOURCE, whose types and formats they use.

`gpuwatch_keep` copies every followed entry of the weights into one buffer, as float32 (exact for all three kinds);
`gpuwatch_compare` reads the weights again after the step and leaves the squares of the differences, taken in registers, and
of the kept weights; `gpuwatch_changes` merges each tensor's chunks into one row, always in the same order.

Sums are float64 from the first addition: the copy is bounded (probes/updates.py), so that even a device that has a 64th of its
speed in float64 takes some 40 us, and neither 1e-30 nor 1e30 needs a second look.
"""

KEEP, COMPARE, CHANGES = "gpuwatch_keep", "gpuwatch_compare", "gpuwatch_changes"
#: Entries that a chunk keeps: it owns so many places of the buffer, filled or not, so that its number says where they are.
CHUNK_ENTRIES = 4096
#: Bytes of what a chunk leaves, and of a row: norm of the update, norm of the weights before, non-finite entries, unused.
CHANGE_BYTES, ROW_BYTES = 24, 32
#: Threads of a block of the first two; the third has those of gpuwatch_rows.
THREADS = 256

SOURCE = r"""
#define FOLLOWED 4096
#define FOLLOWERS 256

struct Change { double squares, before; u32 bad, unused; };

template <int KIND>
__device__ __forceinline__ void keep(const void* data, const Tensor& tensor, const Chunk& chunk, float* saved) {
  for (u32 i = threadIdx.x; i < chunk.count; i += FOLLOWERS)
    saved[i] = Format<KIND>::one(data, (chunk.start + i) * tensor.stride);
}

extern "C" __global__ void __launch_bounds__(FOLLOWERS) gpuwatch_keep(
    const u64* pointers, const Tensor* tensors, const Chunk* chunks, float* saved) {
  Chunk chunk = chunks[blockIdx.x];
  Tensor tensor = tensors[chunk.tensor];
  const void* data = (const void*)pointers[chunk.tensor];
  saved += (u64)blockIdx.x * FOLLOWED;
  if (tensor.kind == 0) keep<0>(data, tensor, chunk, saved);
  else if (tensor.kind == 1) keep<1>(data, tensor, chunk, saved);
  else keep<2>(data, tensor, chunk, saved);
}

template <int KIND>
__device__ __forceinline__ void compare(const void* data, const Tensor& tensor, const Chunk& chunk, const float* saved,
                                        double& squares, double& before, u32& bad) {
  for (u32 i = threadIdx.x; i < chunk.count; i += FOLLOWERS) {
    float old = saved[i], now = Format<KIND>::one(data, (chunk.start + i) * tensor.stride);
    bool kept = (bits_of(old) & SIGN_LESS) < INFINITE;
    if (kept) before += (double)old * (double)old;
    if (kept && (bits_of(now) & SIGN_LESS) < INFINITE) {
      double change = (double)now - (double)old;
      squares += change * change;
    } else {
      bad += 1u;
    }
  }
}

// Sum over `count` threads of the block, in the same order every time: every thread gets it.
template <int COUNT> __device__ __forceinline__ double sum_of(double* shared, double x) {
  __syncthreads();
  shared[threadIdx.x] = x;
  for (u32 half = COUNT / 2; half; half >>= 1) {
    __syncthreads();
    if (threadIdx.x < half) shared[threadIdx.x] += shared[threadIdx.x + half];
  }
  __syncthreads();
  return shared[0];
}

extern "C" __global__ void __launch_bounds__(FOLLOWERS) gpuwatch_compare(
    const u64* pointers, const Tensor* tensors, const Chunk* chunks, const float* saved, Change* changes) {
  __shared__ double shared[FOLLOWERS];
  Chunk chunk = chunks[blockIdx.x];
  Tensor tensor = tensors[chunk.tensor];
  const void* data = (const void*)pointers[chunk.tensor];
  saved += (u64)blockIdx.x * FOLLOWED;
  double squares = 0.0, before = 0.0;
  u32 bad = 0u;
  if (tensor.kind == 0) compare<0>(data, tensor, chunk, saved, squares, before, bad);
  else if (tensor.kind == 1) compare<1>(data, tensor, chunk, saved, squares, before, bad);
  else compare<2>(data, tensor, chunk, saved, squares, before, bad);
  squares = sum_of<FOLLOWERS>(shared, squares);
  before = sum_of<FOLLOWERS>(shared, before);
  double lost = sum_of<FOLLOWERS>(shared, (double)bad);
  if (threadIdx.x == 0) {
    Change change = {squares, before, (u32)lost, 0u};
    changes[blockIdx.x] = change;
  }
}

extern "C" __global__ void __launch_bounds__(ROW_THREADS) gpuwatch_changes(
    const Tensor* tensors, const Change* changes, double* rows) {
  __shared__ double shared[ROW_THREADS];
  Tensor tensor = tensors[blockIdx.x];
  double squares = 0.0, before = 0.0, bad = 0.0;
  for (u32 i = threadIdx.x; i < tensor.chunks; i += ROW_THREADS) {
    Change change = changes[tensor.first_chunk + i];
    squares += change.squares;
    before += change.before;
    bad += (double)change.bad;
  }
  squares = sum_of<ROW_THREADS>(shared, squares);
  before = sum_of<ROW_THREADS>(shared, before);
  bad = sum_of<ROW_THREADS>(shared, bad);
  if (threadIdx.x == 0) {
    double* row = rows + (u64)blockIdx.x * 4;
    row[0] = sqrt(squares);
    row[1] = sqrt(before);
    row[2] = bad;
    row[3] = 0.0;
  }
}
"""
