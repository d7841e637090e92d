// Just enough of CUDA for g++ to run the fused kernel on the host: the product's own source is compiled behind this, unchanged.
//
// Each thread of a block is a coroutine; __syncthreads and the shuffles hand over to the next one until all have arrived.
// `emulate_order` 1 runs threads and blocks backwards: what depends on their order (a missing barrier) gives another result.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ucontext.h>
#include <vector>

#define __device__
#define __global__
#define __forceinline__ inline
#define __noinline__
#define __launch_bounds__(...)
#define __shared__ static

struct alignas(16) uint4 {
  unsigned x, y, z, w;
  uint4(const uint4& from) : x(from.x), y(from.y), z(from.z), w(from.w) {
    if ((uintptr_t)&from % 16) { fprintf(stderr, "a 16-byte load that is not aligned\n"); abort(); }
  }
};
struct Index { unsigned x; };
static Index threadIdx, blockIdx;

static inline unsigned max(unsigned a, unsigned b) { return a > b ? a : b; }
static inline int max(int a, int b) { return a > b ? a : b; }
static inline int min(int a, int b) { return a < b ? a : b; }
template <typename To, typename From> static inline To bits_cast(From from) {
  static_assert(sizeof(To) == sizeof(From), "same size");
  To to;
  memcpy(&to, &from, sizeof to);
  return to;
}
static inline unsigned __float_as_uint(float x) { return bits_cast<unsigned>(x); }
static inline float __uint_as_float(unsigned x) { return bits_cast<float>(x); }
static inline double __longlong_as_double(long long x) { return bits_cast<double>(x); }
static inline float __double2float_rd(double x) {
  float nearest = (float)x;
  return (double)nearest > x ? nextafterf(nearest, -INFINITY) : nearest;
}
static inline unsigned atomicAdd(unsigned* at, unsigned value) { unsigned old = *at; *at += value; return old; }

struct Coroutine { ucontext_t context; std::vector<char> stack; bool over; unsigned long barriers, shuffles; };
static std::vector<Coroutine> coroutines;
static ucontext_t scheduler;
static unsigned current, block_threads;
static uint64_t exchanged[2][32][32]; // turn, warp, lane

static void hand_over() {
  unsigned me = current;
  swapcontext(&coroutines[me].context, &scheduler);
  threadIdx.x = me;
}

static bool all_at_least(unsigned long Coroutine::*count, unsigned long wanted, unsigned first, unsigned last) {
  for (unsigned i = first; i < last; i++)
    if (coroutines[i].*count < wanted) {
      if (coroutines[i].over) { fprintf(stderr, "a thread left before a barrier\n"); abort(); }
      return false;
    }
  return true;
}

static void __syncthreads() {
  unsigned long wanted = ++coroutines[current].barriers;
  while (!all_at_least(&Coroutine::barriers, wanted, 0, block_threads)) hand_over();
}

template <typename T> static T __shfl_down_sync(unsigned, T value, int step) {
  unsigned me = current, warp = me / 32, lane = me % 32;
  unsigned long turn = ++coroutines[me].shuffles;
  uint64_t raw = 0;
  memcpy(&raw, &value, sizeof value);
  exchanged[turn & 1][warp][lane] = raw; // two turns: a fast thread may write the next one before a slow one has read this
  while (!all_at_least(&Coroutine::shuffles, turn, warp * 32, warp * 32 + 32)) hand_over();
  raw = exchanged[turn & 1][warp][lane + step < 32 ? lane + step : lane];
  memcpy(&value, &raw, sizeof value);
  return value;
}

static void (*body)(void**);
static void** body_arguments;
static void run_one() {
  threadIdx.x = current;
  body(body_arguments);
  coroutines[current].over = true;
  swapcontext(&coroutines[current].context, &scheduler);
}

static void emulate(void (*kernel)(void**), unsigned grid, unsigned block, void** arguments, int backwards) {
  body = kernel;
  body_arguments = arguments;
  block_threads = block;
  coroutines.resize(block);
  for (unsigned b = 0; b < grid; b++) {
    blockIdx.x = backwards ? grid - 1 - b : b;
    for (unsigned i = 0; i < block; i++) {
      Coroutine& c = coroutines[i];
      c.stack.resize(32768);
      c.over = false;
      c.barriers = c.shuffles = 0;
      getcontext(&c.context);
      c.context.uc_stack.ss_sp = c.stack.data();
      c.context.uc_stack.ss_size = c.stack.size();
      c.context.uc_link = &scheduler;
      makecontext(&c.context, run_one, 0);
    }
    for (unsigned left = block; left;) {
      left = 0;
      for (unsigned i = 0; i < block; i++) {
        current = backwards ? block - 1 - i : i;
        if (coroutines[current].over) continue;
        threadIdx.x = current;
        swapcontext(&scheduler, &coroutines[current].context);
        left += !coroutines[current].over;
      }
    }
  }
}
