// Products of 16-bit matrices, and of floats of 8 bits that lie along K, by `wgmma` (sm_90a
// alone): one warp has tiles of both operands copied into shared memory by tensor maps, groups
// of four warps multiply. A step along K is 128 bytes of each row.
//
//   kiln_product_wgmma<P, T, GROUPS, TILE_N, STAGES>(a, b, p, write, block = blockIdx.x)
//
// Tiles of 64 * GROUPS x TILE_N; GROUPS * 128 + 32 threads; BATCH = 1; TILE_N is 32, 64, 96,
// 128, 192 or 256 (of 8 bits 32, 64, 128 or 192), and a multiple of 64 where B lies along N.
// `a` and `b` are `const __grid_constant__ kiln_tensor_map` parameters, innermost dimension first, swizzled by 128 bytes:
// [K, M] in boxes of a step and P::A_BOX rows, 64 * GROUPS or all that M has, where A lies along
// K, [M, K] in boxes of [64, 64] where it lies along M; B alike with N and TILE_N. A grid of tiles in x. Dynamic shared
// memory: 1024 and the greater of STAGES * (64 * GROUPS + TILE_N) * 128 and 64 * GROUPS *
// (TILE_N + 8) * 4 bytes. Waits by itself, where it can with the first tiles of b on
// their way.

struct alignas(64) kiln_tensor_map { unsigned char bytes[128]; };

// Copies the box at (inner, outer), then reports its bytes to the barrier.
__device__ __forceinline__ void kiln_copy_box(unsigned to, const kiln_tensor_map& map, int inner,
                                              int outer, unsigned barrier) {
  asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes "
               "[%0], [%1, {%2, %3}], [%4];" ::"r"(to), "l"(&map), "r"(inner), "r"(outer),
               "r"(barrier)
               : "memory");
}

#define KILN_TEN(t)                                                                          \
  "%" #t "0, %" #t "1, %" #t "2, %" #t "3, %" #t "4, %" #t "5, %" #t "6, %" #t "7, %" #t     \
  "8, %" #t "9, "
#define KILN_D8(i)                                                                           \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), \
      "+f"(d[i + 6]), "+f"(d[i + 7])
#define KILN_D16(i) KILN_D8(i), KILN_D8(i + 8)
#define KILN_D48(i) KILN_D16(i), KILN_D16(i + 16), KILN_D16(i + 32)
#define KILN_TO19 KILN_TEN() KILN_TEN(1)
#define KILN_TO39 KILN_TO19 KILN_TEN(2) KILN_TEN(3)
#define KILN_TO59 KILN_TO39 KILN_TEN(4) KILN_TEN(5)
#define KILN_TO89 KILN_TO59 KILN_TEN(6) KILN_TEN(7) KILN_TEN(8)
#define KILN_TO119 KILN_TO89 KILN_TEN(9) KILN_TEN(10) KILN_TEN(11)
// d[64, N] += a[64, 16] * b[16, N]; a matrix lies along k or ACROSS.
#define KILN_WGMMA(N, TYPE, TAG, NAMES, A, B, TA, TB, ...)                                   \
  template <int ACROSS_A, int ACROSS_B>                                                      \
  __device__ __forceinline__ void kiln_wgmma(float (&d)[N / 2], unsigned long long a,        \
                                             unsigned long long b, TAG) {                    \
    asm volatile("wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." TYPE "." TYPE " {" NAMES  \
                 "}, " A ", " B ", 1, 1, 1, " TA ", " TB ";"                                 \
                 : __VA_ARGS__                                                               \
                 : "l"(a), "l"(b), "n"(ACROSS_A), "n"(ACROSS_B));                            \
  }
#define KILN_WGMMAS(TYPE, TAG)                                                               \
  KILN_WGMMA(32, TYPE, TAG, KILN_TEN() "%10, %11, %12, %13, %14, %15", "%16", "%17", "%18",  \
             "%19", KILN_D16(0))                                                             \
  KILN_WGMMA(64, TYPE, TAG, KILN_TO19 KILN_TEN(2) "%30, %31", "%32", "%33", "%34", "%35",    \
             KILN_D16(0), KILN_D16(16))                                                      \
  KILN_WGMMA(96, TYPE, TAG, KILN_TO39 "%40, %41, %42, %43, %44, %45, %46, %47", "%48",       \
             "%49", "%50", "%51", KILN_D48(0))                                               \
  KILN_WGMMA(128, TYPE, TAG, KILN_TO59 "%60, %61, %62, %63", "%64", "%65", "%66", "%67",     \
             KILN_D48(0), KILN_D16(48))                                                      \
  KILN_WGMMA(192, TYPE, TAG, KILN_TO89 "%90, %91, %92, %93, %94, %95", "%96", "%97", "%98",  \
             "%99", KILN_D48(0), KILN_D48(48))                                               \
  KILN_WGMMA(256, TYPE, TAG, KILN_TO119 "%120, %121, %122, %123, %124, %125, %126, %127",    \
             "%128", "%129", "%130", "%131", KILN_D48(0), KILN_D48(48), KILN_D16(96),        \
             KILN_D16(112))
KILN_WGMMAS("bf16", kiln_bf16)
KILN_WGMMAS("f16", kiln_f16)
// d[64, N] = a[64, 32] * b[32, N], to which d is added if ADDED; both lie along k.
#define KILN_WGMMA_EIGHT(N, TYPE, TAG, NAMES, A, B, ADDED, ...)                              \
  template <int ADD>                                                                         \
  __device__ __forceinline__ void kiln_wgmma_eight(float (&d)[N / 2], unsigned long long a,  \
                                                   unsigned long long b, TAG) {              \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " ADDED ", 0;\n"                          \
                 "wgmma.mma_async.sync.aligned.m64n" #N "k32.f32." TYPE "." TYPE " {" NAMES  \
                 "}, " A ", " B ", p, 1, 1;\n}"                                              \
                 : __VA_ARGS__                                                               \
                 : "l"(a), "l"(b), "n"(ADD));                                                \
  }
#define KILN_WGMMAS_EIGHT(TYPE, TAG)                                                         \
  KILN_WGMMA_EIGHT(32, TYPE, TAG, KILN_TEN() "%10, %11, %12, %13, %14, %15", "%16", "%17",   \
                   "%18", KILN_D16(0))                                                       \
  KILN_WGMMA_EIGHT(64, TYPE, TAG, KILN_TO19 KILN_TEN(2) "%30, %31", "%32", "%33", "%34",     \
                   KILN_D16(0), KILN_D16(16))                                                \
  KILN_WGMMA_EIGHT(128, TYPE, TAG, KILN_TO59 "%60, %61, %62, %63", "%64", "%65", "%66",      \
                   KILN_D48(0), KILN_D16(48))                                                \
  KILN_WGMMA_EIGHT(192, TYPE, TAG, KILN_TO89 "%90, %91, %92, %93, %94, %95", "%96", "%97",   \
                   "%98", KILN_D48(0), KILN_D48(48))
KILN_WGMMAS_EIGHT("e4m3", kiln_f8e4m3)
KILN_WGMMAS_EIGHT("e5m2", kiln_f8e5m2)

// Adds the product of a step at `pa` and `pb` in shared memory to `acc`. Of 16 bits it may still
// be under way; of 8 bits it is done: their tensor cores keep 14 bits of a sum, so that sums
// of more than a step are added up in f32.
template <class P, class T, int SUMS>
__device__ __forceinline__ void kiln_multiply_step(float (&acc)[SUMS], unsigned pa, unsigned pb) {
  kiln_group_begin();
  if constexpr (sizeof(T) == 1) {
    static_assert(P::A_ALONG_K && P::B_ALONG_K, "");
    float part[SUMS];
    kiln_wgmma_eight<0>(part, kiln_matrix(pa, 8192), kiln_matrix(pb, 8192), T{});
#pragma unroll
    for (int k = 1; k < 4; ++k)
      kiln_wgmma_eight<1>(part, kiln_matrix(pa + k * 32, 8192), kiln_matrix(pb + k * 32, 8192), T{});
    kiln_group_end();
    kiln_group_wait<0>();
#pragma unroll
    for (int i = 0; i < SUMS; ++i) {
      // No addition before the wait.
      asm volatile("" : "+f"(part[i])::"memory");
      acc[i] += part[i];
    }
  } else {
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      kiln_wgmma<!P::A_ALONG_K, !P::B_ALONG_K>(
          acc, kiln_matrix(pa + k * (P::A_ALONG_K ? 32 : 2048), 8192),
          kiln_matrix(pb + k * (P::B_ALONG_K ? 32 : 2048), 8192), T{});
    }
    kiln_group_end();
  }
}

template <class P, class T, int GROUPS, int TILE_N, int STAGES, class Write>
__device__ __forceinline__ void kiln_product_wgmma(const kiln_tensor_map& a,
                                                   const kiln_tensor_map& b, const P& p,
                                                   const Write& write, unsigned block = blockIdx.x) {
  constexpr int TILE_M = GROUPS * 64, THREADS = GROUPS * 128, PITCH = TILE_N + 8;
  constexpr int STEP = 128 / (int)sizeof(T);
  constexpr int BYTES_A = TILE_M * 128, BYTES_B = TILE_N * 128;
  // Rows of a tile that there are, where that is known: nothing is read of the others.
  constexpr int BOXED_A = P::A_ALONG_K ? P::A_BOX * 128 : BYTES_A;
  const unsigned full = kiln_shared_address(kiln_shared_memory()), empty = full + STAGES * 8;
  const unsigned as = full + 1024, bs = as + STAGES * BYTES_A;
  const kiln_place at = kiln_tile<TILE_M, TILE_N, 1>(p, block);
  const int steps = (int)((p.K + STEP - 1) / STEP);
  auto fetch_a = [&](int step, int stage) {
    const unsigned barrier = full + stage * 8, to_a = as + stage * BYTES_A;
    if (P::A_ALONG_K) {
      kiln_copy_box(to_a, a, step * STEP, (int)at.m, barrier);
    } else {
#pragma unroll
      for (int i = 0; i < GROUPS; ++i)
        kiln_copy_box(to_a + i * 8192, a, (int)at.m + i * 64, step * STEP, barrier);
    }
  };
  // Comes first: it says how many bytes the stage gets.
  auto fetch_b = [&](int step, int stage) {
    const unsigned barrier = full + stage * 8, to_b = bs + stage * BYTES_B;
    kiln_barrier_expect(barrier, BOXED_A + BYTES_B);
    if (P::B_ALONG_K) {
      kiln_copy_box(to_b, b, step * STEP, (int)at.n, barrier);
    } else {
#pragma unroll
      for (int i = 0; i < TILE_N / 64; ++i)
        kiln_copy_box(to_b + i * 8192, b, (int)at.n + i * 64, step * STEP, barrier);
    }
  };
  const int group = threadIdx.x / 128, early = steps < STAGES ? steps : STAGES;
  if (threadIdx.x == THREADS) {
    kiln_ring_begin<STAGES>(full, empty, GROUPS);
    if (!P::B_GIVEN) kiln_wait();
#pragma unroll 1
    for (int step = 0; step < early; ++step) fetch_b(step, step);
    if (P::B_GIVEN) kiln_wait();
#pragma unroll 1
    for (int step = 0; step < early; ++step) fetch_a(step, step);
  } else {
    kiln_wait();
  }
  __syncthreads();
  if (group == GROUPS) {
    if (threadIdx.x == THREADS) {
      int stage = 0, turn = 0;
#pragma unroll 1
      for (int step = STAGES; step < steps; ++step) {
        kiln_barrier_wait(empty + stage * 8, turn);
        fetch_b(step, stage);
        fetch_a(step, stage);
        if (++stage == STAGES) {
          stage = 0;
          turn ^= 1;
        }
      }
    }
    return;
  }
  float acc[TILE_N / 2] = {};
  int stage = 0, turn = 0, before = -1;
#pragma unroll 1
  for (int step = 0; step < steps; ++step) {
    kiln_barrier_wait(full + stage * 8, turn);
    kiln_multiply_step<P, T>(acc, as + stage * BYTES_A + group * 8192, bs + stage * BYTES_B);
    // The step before is done: its stage may be filled again.
    kiln_group_wait<1>();
    if (before >= 0 && threadIdx.x % 128 == 0) kiln_barrier_arrive(empty + before * 8);
    before = stage;
    if (++stage == STAGES) {
      stage = 0;
      turn ^= 1;
    }
  }
  kiln_group_wait<0>();
  auto meet = [] { asm volatile("bar.sync 1, %0;" ::"n"(THREADS) : "memory"); };
  meet();  // All are done with the tiles, where the sums go now.
  float* sums = reinterpret_cast<float*>(kiln_shared_memory() + 1024);
  const int row = threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4, column = threadIdx.x % 4 * 2;
#pragma unroll
  for (int i = 0; i < TILE_N / 2; i += 2) {
    float* to = sums + (row + i % 4 / 2 * 8) * PITCH + column + i / 4 * 8;
    *reinterpret_cast<kiln_pack<float, 2>*>(to) = {{acc[i], acc[i + 1]}};
  }
  meet();
  kiln_finish<TILE_M, TILE_N, PITCH, THREADS, 1>(sums, p, at, write);
}
