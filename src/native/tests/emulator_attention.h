// What only the attention kernels call, and those that take Hopper's instructions.

#include <deque>

template <class T> static unsigned kiln_pair(float low, float high, T) {
  T x, y;
  kiln_set(x, low);
  kiln_set(y, high);
  return x.bits | (unsigned)y.bits << 16;
}
static float kiln_exp2(float x) { return std::exp2(x); }

// Static shared memory is that of a cluster of one block.
static float kiln_cluster_read(const float* p, int) { return *p; }

// Hopper's own instructions. A product takes place when it is waited for, so
// that what is given back or overwritten too early shows.
namespace emulator {
static std::deque<std::vector<std::function<void()>>> products[1024];  // Of each thread: groups, the last is open.
static Gate turns[16];
inline unsigned char* place(unsigned long long panels, unsigned panel, unsigned row, unsigned byte) {
  const unsigned start = (panels & 0x3fff) << 4, step = (panels >> 16 & 0x3fff) << 4, eight = (panels >> 32 & 0x3fff) << 4;
  const unsigned at = start + panel * step + row / 8 * eight + row % 8 * 128 + byte;
  return (unsigned char*)dynamic[rank()] + (at ^ (at >> 7 & 7) << 4);
}
template <class T> float number(const unsigned char* at) {
  T x;
  std::memcpy(&x.bits, at, 2);
  return kiln_widen(x);
}
}  // namespace emulator

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
static void kiln_group_begin() {}
static void kiln_group_end() { emulator::products[emulator::current].emplace_back(); }
template <int N> static void kiln_group_wait() {
  auto& groups = emulator::products[emulator::current];
  for (int i = 0; i < 4; ++i) emulator::yield();  // The copying warps may go on if they are let.
  while (groups.size() > N + 1) {
    for (const auto& product : groups.front()) product();
    groups.pop_front();
  }
}
template <int N> static void kiln_att_settle(float (&)[N]) {}

// Arrivals that complete a phase, those still missing, and the phase's parity.
static unsigned long long& barrier_at(unsigned address) {
  return *(unsigned long long*)(emulator::dynamic[emulator::rank()] + address);
}
static void kiln_barrier_init(unsigned barrier, int count) {
  barrier_at(barrier) = count | (unsigned)count << 16;
  for (auto& turn : emulator::turns) turn = {};  // A block starts.
}
static void kiln_barrier_arrive(unsigned barrier) {
  unsigned long long& gate = barrier_at(barrier);
  gate -= 1 << 16;
  if ((gate >> 16 & 0xffff) == 0) gate = (gate & 0xffff) << 16 | gate & 0xffff | (~gate & 1ull << 32);
}
static void kiln_barriers_begun() {}
// The bytes that follow are there before anybody else runs.
static void kiln_barrier_expect(unsigned barrier, int) { kiln_barrier_arrive(barrier); }
static void kiln_copy_bulk(unsigned to, const void* from, int bytes, unsigned) {
  if ((to | (uintptr_t)from | (unsigned)bytes) % 16 != 0) std::abort();
  std::memcpy(emulator::dynamic[emulator::rank()] + to, from, bytes);
}
static void kiln_barrier_copied(unsigned barrier) {
  kiln_copy_commit();
  kiln_copy_wait<0>();
  kiln_barrier_arrive(barrier);
}
static void kiln_barrier_wait(unsigned barrier, unsigned parity) {
  while ((barrier_at(barrier) >> 32 & 1) == parity) emulator::yield();
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
