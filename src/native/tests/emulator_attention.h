// The primitives of the attention kernels. Copies in the background arrive as
// late as the kernel allows, so that a wait that is missing shows.

#include <deque>

namespace emulator {
struct LateCopy {
  void* to;
  const void* from;
  bool inside;
};
static std::deque<std::vector<LateCopy>> late_copies[1024];  // Of each thread: groups, the last is open.
static const unsigned short* lanes_rows[32][32];
alignas(1024) static unsigned char dynamic_memory[228 << 10];
static Dim3 dynamic_block = {~0u, ~0u, ~0u};
}  // namespace emulator

// Full of NaN when a block starts.
static unsigned char* kiln_att_shared() {
  Dim3& last = emulator::dynamic_block;
  if (last.x != blockIdx.x || last.y != blockIdx.y || last.z != blockIdx.z) {
    std::memset(emulator::dynamic_memory, 0xff, sizeof emulator::dynamic_memory);
    for (auto& groups : emulator::late_copies) groups.clear();
    last = blockIdx;
  }
  return emulator::dynamic_memory;
}

static void kiln_att_copy(void* to, const void* from, bool inside) {
  auto& groups = emulator::late_copies[emulator::current];
  if (groups.empty()) groups.emplace_back();
  groups.back().push_back({to, from, inside});
}
static void kiln_att_commit() {
  auto& groups = emulator::late_copies[emulator::current];
  if (groups.empty()) groups.emplace_back();
  groups.emplace_back();
}
template <int N> static void kiln_att_wait() {
  auto& groups = emulator::late_copies[emulator::current];
  while (groups.size() > N + 1) {
    for (const auto& copy : groups.front()) {
      if (copy.inside) std::memcpy(copy.to, copy.from, 16);
      else std::memset(copy.to, 0, 16);
    }
    groups.pop_front();
  }
}

// ldmatrix.x4: thread l gets elements 2 (l % 4) and the next of row l / 4 of each
// matrix; transposed: of column l / 4.
static void load_matrices(unsigned (&x)[4], const void* row, bool transposed) {
  const unsigned lane = emulator::current % 32, warp = emulator::current / 32;
  if (reinterpret_cast<uintptr_t>(row) % 16 != 0) std::abort();
  emulator::lanes_rows[warp][lane] = static_cast<const unsigned short*>(row);
  warp_barrier();
  for (int m = 0; m < 4; ++m) {
    const auto* rows = emulator::lanes_rows[warp] + m * 8;
    const unsigned one = lane / 4, two = lane % 4 * 2;
    const unsigned low = transposed ? rows[two][one] : rows[one][two];
    const unsigned high = transposed ? rows[two + 1][one] : rows[one][two + 1];
    x[m] = low | high << 16;
  }
  warp_barrier();
}
static void kiln_att_matrices(unsigned (&x)[4], const void* row) { load_matrices(x, row, false); }
static void kiln_att_transposed(unsigned (&x)[4], const void* row) { load_matrices(x, row, true); }

template <class T>
static void kiln_att_mma(float* c, const unsigned* a, unsigned b0, unsigned b1, T) {
  const unsigned b[2] = {b0, b1};
  kiln_mma(c, a, b, T{});
}
template <class T> static unsigned kiln_att_pair(float low, float high, T) {
  T x, y;
  kiln_set(x, low);
  kiln_set(y, high);
  return x.bits | (unsigned)y.bits << 16;
}
static float kiln_att_exp2(float x) { return std::exp2(x); }

// Clusters of one block.
static unsigned kiln_att_rank() { return 0; }
static void kiln_att_cluster_sync() { __syncthreads(); }
static float kiln_att_peek(const float* p, unsigned) { return *p; }

// Hopper's own instructions. A product takes place when it is waited for, so
// that what is given back or overwritten too early shows.
namespace emulator {
static std::deque<std::vector<std::function<void()>>> products[1024];  // Of each thread: groups, the last is open.
static Gate turns[16];
inline unsigned char* place(unsigned long long panels, unsigned panel, unsigned row, unsigned byte) {
  const unsigned start = (panels & 0x3fff) << 4, step = (panels >> 16 & 0x3fff) << 4, eight = (panels >> 32 & 0x3fff) << 4;
  const unsigned at = start + panel * step + row / 8 * eight + row % 8 * 128 + byte;
  return dynamic_memory + (at ^ (at >> 7 & 7) << 4);
}
template <class T> float number(const unsigned char* at) {
  T x;
  std::memcpy(&x.bits, at, 2);
  return kiln_widen(x);
}
}  // namespace emulator

static unsigned kiln_att_address(const void* p) {
  return (unsigned)(static_cast<const unsigned char*>(p) - emulator::dynamic_memory);
}
static void defer(std::function<void()> product) {
  auto& groups = emulator::products[emulator::current];
  if (groups.empty()) groups.emplace_back();
  groups.back().push_back(product);
}
template <int N, class T>
static void kiln_att_shared_product(float (&c)[N / 2], unsigned long long a, unsigned long long b, int more, T) {
  float* to = c;
  defer([=] {
    const unsigned lane = emulator::current % 32, warp = emulator::current / 32 % 4;
    for (unsigned i = 0; i < N / 2; ++i) {
      const unsigned row = warp * 16 + lane / 4 + i / 2 % 2 * 8, column = i / 4 * 8 + lane % 4 * 2 + i % 2;
      float sum = more ? to[i] : 0.0f;
      for (unsigned k = 0; k < 16; ++k)
        sum += emulator::number<T>(emulator::place(a, 0, row, k * 2)) *
               emulator::number<T>(emulator::place(b, 0, column, k * 2));
      to[i] = sum;
    }
  });
}
template <int N, class T>
static void kiln_att_held_product(float (&c)[N / 2], const unsigned (&a)[4], unsigned long long b, T) {
  float* to = c;
  const unsigned* held = a;
  defer([=] {
    const unsigned lane = emulator::current % 32, warp = emulator::current / 32;
    for (int i = 0; i < 4; ++i) emulator::lanes_a[warp][lane][i] = held[i];
    warp_barrier();
    for (unsigned i = 0; i < N / 2; ++i) {
      const unsigned half = i / 2 % 2, column = i / 4 * 8 + lane % 4 * 2 + i % 2;
      for (unsigned k = 0; k < 16; ++k) {
        const unsigned word = emulator::lanes_a[warp][lane / 4 * 4 + k % 8 / 2][half + k / 8 * 2];
        const unsigned short x = k % 2 ? word >> 16 : word;
        to[i] += emulator::number<T>(reinterpret_cast<const unsigned char*>(&x)) *
                 emulator::number<T>(emulator::place(b, column / 64, k, column % 64 * 2));
      }
    }
    warp_barrier();
  });
}
static void kiln_att_group_begin() {}
static void kiln_att_group_end() { emulator::products[emulator::current].emplace_back(); }
template <int N> static void kiln_att_group_wait() {
  auto& groups = emulator::products[emulator::current];
  for (int i = 0; i < 4; ++i) emulator::yield();  // The copying warps may go on if they are let.
  while (groups.size() > N + 1) {
    for (const auto& product : groups.front()) product();
    groups.pop_front();
  }
}
template <int N> static void kiln_att_settle(float (&)[N]) {}

// Arrivals that complete a phase, those still missing, and the phase's parity.
static void kiln_att_gate_init(unsigned long long* gate, int count) {
  *gate = count | (unsigned)count << 16;
  for (auto& turn : emulator::turns) turn = {};  // A block starts.
}
static void kiln_att_gate_arrive(unsigned long long* gate) {
  *gate -= 1 << 16;
  if ((*gate >> 16 & 0xffff) == 0) *gate = (*gate & 0xffff) << 16 | *gate & 0xffff | (~*gate & 1ull << 32);
}
static void kiln_att_gate_copied(unsigned long long* gate) {
  kiln_att_commit();
  kiln_att_wait<0>();
  kiln_att_gate_arrive(gate);
}
static void kiln_att_gate_wait(unsigned long long* gate, unsigned parity) {
  while ((*gate >> 32 & 1) == parity) emulator::yield();
}
static void kiln_att_publish() {}
static void kiln_att_take_turn(int id) {
  emulator::turns[id].size = 256;
  emulator::wait(emulator::turns[id]);
}
static void kiln_att_give_turn(int id) {
  emulator::Gate& gate = emulator::turns[id];
  gate.size = 256;
  if (++gate.arrived == 256) {
    gate.arrived = 0;
    ++gate.turn;
  }
}
template <int COUNT> static void kiln_att_more_registers() {}
template <int COUNT> static void kiln_att_fewer_registers() {}
static void __syncwarp() { warp_barrier(); }
