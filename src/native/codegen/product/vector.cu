// Products of few rows with a matrix that lies along K: as fast as it is read.
//
//   kiln_product_vector<P, ROWS, WARPS, SPLIT, COLUMNS>(a, b, p, write, block = blockIdx.x)
//
// M = ROWS; P::ALIGNED, A_ALONG_K and B_ALONG_K; K a multiple of 16 bytes. SPLIT
// of the WARPS share the sums of COLUMNS columns: WARPS / SPLIT * COLUMNS columns
// a block. A grid of ceil(N / those) x BATCH blocks in x. Dynamic shared memory:
// WARPS * COLUMNS * ROWS * 4 bytes. Calls row<1> alone. Waits by itself, where it can
// with the first part of b on its way.

template <class P, int ROWS, int WARPS, int SPLIT, int COLUMNS, class T, class Write>
__device__ __forceinline__ void kiln_product_vector(const T* a, const T* b, const P& p,
                                                    const Write& write, unsigned block = blockIdx.x) {
  constexpr int V = 16 / sizeof(T), TILE_N = WARPS / SPLIT * COLUMNS, STEP = SPLIT * 32 * V;
  // Loads of a thread on their way at a time.
  constexpr int DEEP = COLUMNS >= 8 ? 1 : 8 / COLUMNS;
  const unsigned tiles = (unsigned)((p.N + TILE_N - 1) / TILE_N);
  const kiln_index z = block / tiles, n0 = (kiln_index)(block % tiles) * TILE_N;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, part = warp % SPLIT;
  const int first = warp / SPLIT * COLUMNS;
  a += p.A_BATCH(z);
  b += p.B_BATCH(z);
  float acc[ROWS][COLUMNS] = {};
  kiln_pack<T, V> held[DEEP][COLUMNS];
  auto fetch = [&](kiln_index k0) {
#pragma unroll
    for (int d = 0; d < DEEP; ++d)
#pragma unroll
      for (int c = 0; c < COLUMNS; ++c) {
        const kiln_index k = k0 + d * STEP, n = n0 + first + c;
        held[d][c] = k < p.K && n < p.N
                         ? *reinterpret_cast<const kiln_pack<T, V>*>(b + n * p.BN + k)
                         : kiln_pack<T, V>{};
      }
  };
  kiln_index k0 = (part * 32 + lane) * V;
  if (P::B_GIVEN) {
    // Into the L2 cache: a load would be moved to after the wait.
#pragma unroll
    for (int d = 0; d < DEEP; ++d)
#pragma unroll
      for (int c = 0; c < COLUMNS; ++c) {
        const kiln_index k = k0 + d * STEP, n = n0 + first + c;
        if (lane % 2 == 0 && k < p.K && n < p.N) kiln_prefetch(b + n * p.BN + k);
      }
  }
  kiln_wait();
  fetch(k0);
  while (k0 < p.K) {
#pragma unroll
    for (int d = 0; d < DEEP; ++d) {
      const kiln_index k = k0 + d * STEP;
      if (k >= p.K) break;
#pragma unroll
      for (int r = 0; r < ROWS; ++r) {
        float x[V];
        kiln_load(a + r * p.AM + k, x);
#pragma unroll
        for (int c = 0; c < COLUMNS; ++c)
#pragma unroll
          for (int v = 0; v < V; ++v) {
            acc[r][c] = fmaf(x[v], kiln_widen(held[d][c].at[v]), acc[r][c]);
          }
      }
    }
    k0 += STEP * DEEP;
    if (k0 < p.K) fetch(k0);
  }
  float* sums = reinterpret_cast<float*>(kiln_shared_memory());
#pragma unroll
  for (int r = 0; r < ROWS; ++r)
#pragma unroll
    for (int c = 0; c < COLUMNS; ++c) {
#pragma unroll
      for (int mask = 16; mask > 0; mask >>= 1) acc[r][c] += kiln_shuffle(acc[r][c], mask);
      if (lane == 0) sums[(part * ROWS + r) * TILE_N + first + c] = acc[r][c];
    }
  __syncthreads();
  for (int e = threadIdx.x; e < ROWS * TILE_N; e += WARPS * 32) {
    float sum[1] = {sums[e]};
#pragma unroll
    for (int i = 1; i < SPLIT; ++i) sum[0] += sums[i * (ROWS * TILE_N) + e];
    const kiln_index n = n0 + e % TILE_N;
    if (n < p.N) write.template row<1>(z, e / TILE_N, n, sum);
  }
}
