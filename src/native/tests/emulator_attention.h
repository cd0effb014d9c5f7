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
