// Runs generated kernels on the CPU: a fibre for each thread of a block, blocks
// (or clusters of them) one after the other. Shared memory is a static variable,
// dynamic shared memory an array for each block of a cluster, a barrier a loop of
// yields. Asynchronous copies take place when they are waited for, no sooner.
// Warp operations exchange through memory, so their layouts are checked against
// the instruction set's documentation as written down here.

#include <setjmp.h>
#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <utility>
#include <vector>

#define KILN_EMULATED
#define __global__
#define __device__
#define __forceinline__ inline
#define __shared__ static
#define __launch_bounds__(...)
#define __cluster_dims__(...)
#define __align__(n) __attribute__((aligned(n)))

struct Dim3 { unsigned x, y, z; };
static Dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulator {
struct Gate {
  int size = 0, arrived = 0;
  unsigned turn = 0;
};
struct Copy {
  char* to;
  const char* from;
  int bytes;
};
struct Fibre {
  ucontext_t context;                       // Where it starts.
  jmp_buf at;                               // Where it yielded.
  bool started = false;
  std::vector<char> stack;
  bool done = false;
  std::vector<Copy> copies;                 // Of no group yet.
  std::vector<std::vector<Copy>> groups;    // Oldest first.
};
constexpr unsigned DYNAMIC = 227 << 10, CLUSTER = 16;
alignas(1024) static char dynamic[CLUSTER][DYNAMIC];
static std::vector<Fibre> fibres;
static jmp_buf scheduler;
static unsigned current;          // Of a cluster's threads.
static unsigned first_block;      // Of the cluster.
static Gate cluster_gate;
static std::vector<Gate> block_gates, warp_gates;
static std::function<void()> kernel;
static long long lanes_x[32 * CLUSTER][32];
static unsigned lanes_a[32 * CLUSTER][32][4], lanes_b[32 * CLUSTER][32][2];
static const void* lanes_p[32 * CLUSTER][32];
inline unsigned rank() { return current / blockDim.x; }
inline Gate& block_gate() { return block_gates[rank()]; }

// Like swapcontext, without the system call that it makes each time for the signal mask.
inline void yield() {
  if (_setjmp(fibres[current].at) == 0) _longjmp(scheduler, 1);
}
inline void resume(Fibre& fibre) {
  if (_setjmp(scheduler) != 0) return;
  if (fibre.started) _longjmp(fibre.at, 1);
  fibre.started = true;
  setcontext(&fibre.context);
}
inline void wait(Gate& gate) {
  const unsigned turn = gate.turn;
  if (++gate.arrived == gate.size) {
    gate.arrived = 0;
    ++gate.turn;
    return;
  }
  while (gate.turn == turn) yield();
}
inline void leave(Gate& gate) {
  --gate.size;
  if (gate.size > 0 && gate.arrived == gate.size) {
    gate.arrived = 0;
    ++gate.turn;
  }
}
inline void run_fibre() {
  kernel();
  fibres[current].done = true;
  leave(cluster_gate);
  leave(block_gate());
  // A block that has ended has no shared memory for others of the cluster to read.
  if (block_gate().size == 0) std::memset(dynamic[rank()], 0xff, DYNAMIC);
  leave(warp_gates[current / 32]);
  yield();
}
inline void launch(Dim3 grid, unsigned threads, unsigned cluster, std::function<void()> body) {
  kernel = body;
  gridDim = grid;
  blockDim = {threads, 1, 1};
  const unsigned all = threads * cluster;
  for (unsigned z = 0; z < grid.z; ++z)
    for (unsigned y = 0; y < grid.y; ++y)
      for (first_block = 0; first_block < grid.x; first_block += cluster) {
        std::memset(dynamic, 0xff, cluster * DYNAMIC);  // What nobody wrote is no number.
        fibres.resize(all);
        cluster_gate = {(int)all, 0, 0};
        block_gates.assign(cluster, {(int)threads, 0, 0});
        warp_gates.assign((all + 31) / 32, {32, 0, 0});
        for (auto& fibre : fibres) {
          fibre.done = fibre.started = false;
          fibre.copies.clear();
          fibre.groups.clear();
          fibre.stack.resize(64 << 10);
          getcontext(&fibre.context);
          fibre.context.uc_stack.ss_sp = fibre.stack.data();
          fibre.context.uc_stack.ss_size = fibre.stack.size();
          fibre.context.uc_link = nullptr;
          makecontext(&fibre.context, run_fibre, 0);
        }
        // Forth and back, and some warps rest while others run on: where a
        // barrier is missing, something goes wrong.
        bool more = true;
        for (unsigned sweep = 0; more; ++sweep) {
          more = false;
          for (unsigned n = 0; n < all; ++n) {
            const unsigned i = sweep % 2 ? all - 1 - n : n;
            if (fibres[i].done) continue;
            more = true;
            const unsigned chance = (sweep / 32 * 64 + i / 32 + 1) * 2654435761u;
            if (z == 0 && chance >> 31) continue;
            current = i;
            threadIdx = {i % threads, 0, 0};
            blockIdx = {first_block + i / threads, y, z};
            resume(fibres[i]);
          }
        }
      }
}
template <class... A, size_t... I>
void call(void (*f)(A...), void** args, std::index_sequence<I...>) { f((A)args[I]...); }
template <class... A>
void enter(void (*f)(A...), unsigned x, unsigned y, unsigned z, unsigned threads, unsigned cluster,
           void** args) {
  launch({x, y, z}, threads, cluster, [=] { call(f, args, std::index_sequence_for<A...>()); });
}
}  // namespace emulator

#define KILN_ENTRY(name, cluster)                                                              \
  extern "C" __attribute__((visibility("default"))) void emulate_##name(                       \
      unsigned x, unsigned y, unsigned z, unsigned t, void** args) {                           \
    emulator::enter(name, x, y, z, t, cluster, args);                                          \
  }

static void __syncthreads() { emulator::wait(emulator::block_gate()); }
static void warp_barrier() { emulator::wait(emulator::warp_gates[emulator::current / 32]); }
static float __uint_as_float(unsigned x) { float y; std::memcpy(&y, &x, 4); return y; }
static unsigned __float_as_uint(float x) { unsigned y; std::memcpy(&y, &x, 4); return y; }
static double __longlong_as_double(long long x) { double y; std::memcpy(&y, &x, 8); return y; }
static float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
static double rsqrt(double x) { return 1.0 / std::sqrt(x); }

struct kiln_f16;
struct kiln_bf16;
static float kiln_widen(kiln_f16 x);
static float kiln_widen(kiln_bf16 x);
static kiln_f16 kiln_narrow_f16(float x);

template <class T> static T exchange(T x, int mask) {
  const unsigned lane = emulator::current % 32, warp = emulator::current / 32;
  std::memcpy(&emulator::lanes_x[warp][lane], &x, sizeof x);
  warp_barrier();
  T y;
  std::memcpy(&y, &emulator::lanes_x[warp][lane ^ mask], sizeof y);
  warp_barrier();
  return y;
}
static unsigned kiln_ballot(bool x) {
  unsigned bits = (unsigned)x << emulator::current % 32;
  for (int mask = 1; mask < 32; mask <<= 1) bits |= exchange(bits, mask);
  return bits;
}
static float kiln_shuffle(float x, int mask) { return exchange(x, mask); }
static long long kiln_shuffle(long long x, int mask) { return exchange(x, mask); }
static double kiln_shuffle(double x, int mask) { return exchange(x, mask); }

// mma.m16n8k16: `a` and `b` hold pairs of 16-bit elements, `c` four of 16 x 8 sums.
template <class T> static void kiln_mma(float* c, const unsigned* a, const unsigned* b, T) {
  const unsigned lane = emulator::current % 32, warp = emulator::current / 32;
  for (int i = 0; i < 4; ++i) emulator::lanes_a[warp][lane][i] = a[i];
  for (int i = 0; i < 2; ++i) emulator::lanes_b[warp][lane][i] = b[i];
  warp_barrier();
  auto element = [](unsigned word, int half) {
    T x;
    x.bits = (unsigned short)(half ? word >> 16 : word);
    return kiln_widen(x);
  };
  for (int i = 0; i < 4; ++i) {
    const int row = lane / 4 + (i / 2) * 8, column = lane % 4 * 2 + i % 2;
    for (int k = 0; k < 16; ++k) {
      const unsigned x = emulator::lanes_a[warp][row % 8 * 4 + k % 8 / 2][row / 8 + k / 8 * 2];
      const unsigned y = emulator::lanes_b[warp][column * 4 + k % 8 / 2][k / 8];
      c[i] += element(x, k % 2) * element(y, k % 2);
    }
  }
  warp_barrier();
}

static unsigned char* kiln_shared_memory() {
  return (unsigned char*)emulator::dynamic[emulator::rank()];
}
static unsigned kiln_shared_address(const void* p) {
  return (unsigned)((const char*)p - emulator::dynamic[emulator::rank()]);
}
static void kiln_copy(void* to, const void* from, int bytes) {
  if (((uintptr_t)to | (uintptr_t)from) % 16 != 0) std::abort();
  emulator::fibres[emulator::current].copies.push_back({(char*)to, (const char*)from, bytes});
}
static void kiln_copy_commit() {
  auto& fibre = emulator::fibres[emulator::current];
  fibre.groups.push_back(std::move(fibre.copies));
  fibre.copies.clear();
}
template <int LEFT> static void kiln_copy_wait() {
  auto& groups = emulator::fibres[emulator::current].groups;
  for (; groups.size() > LEFT; groups.erase(groups.begin()))
    for (const emulator::Copy& copy : groups.front()) {
      std::memcpy(copy.to, copy.from, copy.bytes);
      std::memset(copy.to + copy.bytes, 0, 16 - copy.bytes);
    }
}

// ldmatrix.x4: thread t gets elements 2 * (t % 4) and the next of row t / 4 of each matrix.
template <bool TRANSPOSED> static void kiln_ldmatrix(unsigned (&x)[4], const void* row) {
  const unsigned lane = emulator::current % 32, warp = emulator::current / 32;
  if ((uintptr_t)row % 16 != 0) std::abort();
  emulator::lanes_p[warp][lane] = row;
  warp_barrier();
  for (int i = 0; i < 4; ++i) {
    auto element = [&](int r, int c) -> unsigned {
      if (TRANSPOSED) std::swap(r, c);
      return ((const unsigned short*)emulator::lanes_p[warp][i * 8 + r])[c];
    };
    const int r = lane / 4, c = lane % 4 * 2;
    x[i] = element(r, c) | element(r, c + 1) << 16;
  }
  warp_barrier();
}

static unsigned kiln_cluster_rank() { return emulator::rank(); }
static void kiln_cluster_sync() { emulator::wait(emulator::cluster_gate); }
static void kiln_cluster_read(float (&x)[4], const float* p, int rank) {
  const size_t offset = (const char*)p - emulator::dynamic[emulator::rank()];
  std::memcpy(x, emulator::dynamic[rank] + offset, 16);
}
