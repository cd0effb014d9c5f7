// Products of 16-bit matrices by `mma.sync` (sm_80 and newer).
//
//   kiln_product_mma<P, TILE_M, TILE_N, WARPS_M, WARPS_N, STAGES, SPLIT>(a, b, p, write, block = blockIdx.x)
//
// WARPS_M x WARPS_N warps; a grid of tiles x BATCH x SPLIT blocks in x, SPLIT of
// them a cluster (sm_90) that shares the sum over K. Dynamic shared memory: the
// greater of STAGES * (TILE_M + TILE_N) * 128 and TILE_M * (TILE_N + 8) * 4 bytes.

// A panel of TILE rows (of A, or columns of B) x 64 elements of K in shared
// memory, dense as in memory, in chunks of 16 bytes that are permuted within
// eight rows so that neither a copy nor a fragment meets a bank twice.
template <int TILE, bool ALONG_K, bool WHOLE, int THREADS> struct kiln_panel {
  enum : int { OUTER = ALONG_K ? TILE : 64, CHUNKS = (ALONG_K ? 64 : TILE) / 8 };

  // In elements.
  static __device__ __forceinline__ int at(int outer, int chunk) {
    const int phase = CHUNKS >= 8 ? outer % 8 : outer / (8 / CHUNKS) % CHUNKS;
    return (outer * CHUNKS + (chunk ^ phase)) * 8;
  }

  template <class T>
  static __device__ __forceinline__ void fetch(unsigned short* to, const T* p, kiln_index row0,
                                               kiln_index k0, kiln_index rows, kiln_index ks,
                                               kiln_index row_stride, kiln_index k_stride) {
    const kiln_index outer0 = ALONG_K ? row0 : k0, inner0 = ALONG_K ? k0 : row0;
    const kiln_index outers = ALONG_K ? rows : ks, inners = ALONG_K ? ks : rows;
    const kiln_index outer_stride = ALONG_K ? row_stride : k_stride;
    const kiln_index inner_stride = ALONG_K ? k_stride : row_stride;
    constexpr int COUNT = OUTER * CHUNKS;
#pragma unroll
    for (int i = 0; i < (COUNT + THREADS - 1) / THREADS; ++i) {
      const int e = i * THREADS + threadIdx.x;
      if (COUNT % THREADS != 0 && e >= COUNT) break;
      const int o = e / CHUNKS, c = e % CHUNKS;
      const kiln_index outer = outer0 + o, inner = inner0 + c * 8;
      const kiln_index left = outer < outers ? inners - inner : 0;
      unsigned short* into = to + at(o, c);
      if (WHOLE) {
        // Nothing is read where nothing is left, but the address must be one of the tensor.
        const T* from = left > 0 ? p + outer * outer_stride + inner : p;
        kiln_copy(into, from, left >= 8 ? 16 : left > 0 ? (int)left * 2 : 0);
      } else {
        kiln_pack<unsigned short, 8> chunk;
#pragma unroll
        for (int j = 0; j < 8; ++j) {
          chunk.at[j] = j < left ? p[outer * outer_stride + (inner + j) * inner_stride].bits
                                 : (unsigned short)0;
        }
        *reinterpret_cast<kiln_pack<unsigned short, 8>*>(into) = chunk;
      }
    }
  }
};

template <class P, int TILE_M, int TILE_N, int WARPS_M, int WARPS_N, int STAGES, int SPLIT, class T,
          class Write>
__device__ __forceinline__ void kiln_product_mma(const T* a, const T* b, const P& p,
                                                 const Write& write, unsigned block = blockIdx.x) {
  constexpr int THREADS = WARPS_M * WARPS_N * 32, PITCH = TILE_N + 8;
  constexpr int MS = TILE_M / WARPS_M / 16, NS = TILE_N / WARPS_N / 16;
  static_assert(MS * WARPS_M * 16 == TILE_M && NS * WARPS_N * 16 == TILE_N, "");
  constexpr bool A_K = !P::A_ALONG_M, B_K = !P::B_ALONG_N;
  using PanelA = kiln_panel<TILE_M, A_K, P::ALIGNED && (P::A_ALONG_K || P::A_ALONG_M), THREADS>;
  using PanelB = kiln_panel<TILE_N, B_K, P::ALIGNED && (P::B_ALONG_K || P::B_ALONG_N), THREADS>;
  unsigned short* as = reinterpret_cast<unsigned short*>(kiln_shared_memory());
  unsigned short* bs = as + STAGES * TILE_M * 64;
  const kiln_place at = kiln_tile<TILE_M, TILE_N, SPLIT>(p, block);
  if (P::GROUPED && at.m >= at.rows) return;
  a += p.A_BATCH(at.z);
  b += p.B_BATCH(at.matrix);
  const int steps = (int)((kiln_depth(p, at) + 63) / 64);
  const int first = SPLIT > 1 ? steps * at.part / SPLIT : 0;
  const int last = SPLIT > 1 ? steps * (at.part + 1) / SPLIT : steps;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int wm = warp / WARPS_N * (MS * 16), wn = warp % WARPS_N * (NS * 16);
  float acc[MS][NS][2][4] = {};

  auto fetch = [&](int step, int stage) {
    if (step < last) {
      PanelA::fetch(as + stage * (TILE_M * 64), a, at.m, step * 64ll, at.rows, p.K, p.AM, p.AK);
      PanelB::fetch(bs + stage * (TILE_N * 64), b, at.n, step * 64ll, p.N, p.K, p.BN, p.BK);
    }
    kiln_copy_commit();
  };
#pragma unroll
  for (int i = 0; i < STAGES - 1; ++i) fetch(first + i, i);
  int stage = 0;
  for (int step = first; step < last; ++step) {
    kiln_copy_wait<STAGES - 2>();
    __syncthreads();  // The copies of all are there, and nobody reads the stage before any more.
    fetch(step + STAGES - 1, stage == 0 ? STAGES - 1 : stage - 1);
    const unsigned short* pa = as + stage * (TILE_M * 64);
    const unsigned short* pb = bs + stage * (TILE_N * 64);
#pragma unroll
    for (int k = 0; k < 64; k += 16) {
      unsigned fa[MS][4], fb[NS][4];
      const int low = lane % 8, second = lane / 8 % 2, third = lane / 16;
#pragma unroll
      for (int i = 0; i < MS; ++i) {
        const int m = wm + i * 16;
        if (A_K) kiln_ldmatrix<false>(fa[i], pa + PanelA::at(m + second * 8 + low, k / 8 + third));
        else kiln_ldmatrix<true>(fa[i], pa + PanelA::at(k + third * 8 + low, m / 8 + second));
      }
#pragma unroll
      for (int j = 0; j < NS; ++j) {
        const int n = wn + j * 16;
        if (B_K) kiln_ldmatrix<false>(fb[j], pb + PanelB::at(n + third * 8 + low, k / 8 + second));
        else kiln_ldmatrix<true>(fb[j], pb + PanelB::at(k + second * 8 + low, n / 8 + third));
      }
#pragma unroll
      for (int i = 0; i < MS; ++i)
#pragma unroll
        for (int j = 0; j < NS; ++j) {
          kiln_mma(acc[i][j][0], fa[i], fb[j], T{});
          kiln_mma(acc[i][j][1], fa[i], fb[j] + 2, T{});
        }
    }
    stage = stage + 1 == STAGES ? 0 : stage + 1;
  }
  kiln_copy_wait<0>();
  __syncthreads();
  float* sums = reinterpret_cast<float*>(kiln_shared_memory());
  const int row = wm + lane / 4, column = wn + lane % 4 * 2;
#pragma unroll
  for (int i = 0; i < MS; ++i)
#pragma unroll
    for (int j = 0; j < NS; ++j)
#pragma unroll
      for (int q = 0; q < 4; ++q) {
        const float* from = acc[i][j][q / 2] + q % 2 * 2;
        float* to = sums + (row + i * 16 + q % 2 * 8) * PITCH + column + j * 16 + q / 2 * 8;
        *reinterpret_cast<kiln_pack<float, 2>*>(to) = {{from[0], from[1]}};
      }
  if (SPLIT > 1) kiln_cluster_sync();
  else __syncthreads();
  kiln_finish<TILE_M, TILE_N, PITCH, THREADS, SPLIT>(sums, p, at, write);
}
