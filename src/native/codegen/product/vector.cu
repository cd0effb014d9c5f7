// Products of few rows with a matrix that lies along K: as fast as it is read.
//
//   kiln_product_vector<P, ROWS, WARPS, SPLIT, COLUMNS>(a, b, p, write, block, also)
//
// M = ROWS; P::ALIGNED, A_ALONG_K and B_ALONG_K; K a multiple of 16 bytes. SPLIT
// of the WARPS share the sums of COLUMNS columns: WARPS / SPLIT * COLUMNS columns
// a block, of a P::TWIN of both matrices. A grid of ceil(N / those) x BATCH blocks in x. Dynamic
// shared memory: WARPS * COLUMNS * ROWS * 4 bytes, of f64 * 8, and of a TWIN twice that. Calls
// row<1> alone. Waits by itself, where it can
// with the first part of b on its way.

template <class P, int ROWS, int WARPS, int SPLIT, int COLUMNS, class T, class Write>
__device__ __forceinline__ void kiln_product_vector(const T* a, const T* b, const P& p,
                                                    const Write& write, unsigned block,
                                                    const T* also = nullptr) {
  using R = decltype(kiln_widen(T{}));
  constexpr int V = 16 / sizeof(T), TILE_N = WARPS / SPLIT * COLUMNS, STEP = SPLIT * 32 * V;
  // Columns of a warp, of both matrices, and sums of a row.
  constexpr int ALL = P::TWIN ? 2 * COLUMNS : COLUMNS, SUMS = P::TWIN ? 2 * TILE_N : TILE_N;
  // Loads of a thread on their way at a time.
  constexpr int DEEP = ALL >= 8 ? 1 : 8 / ALL;
  const unsigned tiles = (unsigned)((p.N + TILE_N - 1) / TILE_N);
  const kiln_index z = block / tiles, n0 = (kiln_index)(block % tiles) * TILE_N;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, part = warp % SPLIT;
  const int first = warp / SPLIT * COLUMNS;
  a += p.A_BATCH(z);
  b += p.B_BATCH(z);
  if (P::TWIN) also += p.B_BATCH(z);
  R acc[ROWS][ALL] = {};
  kiln_pack<T, V> held[DEEP][ALL];
  auto column = [&](int c) { return n0 + first + c % COLUMNS; };
  auto lies = [&](int c) { return (c < COLUMNS ? b : also) + column(c) * p.BN; };
  auto fetch = [&](kiln_index k0) {
#pragma unroll
    for (int d = 0; d < DEEP; ++d)
#pragma unroll
      for (int c = 0; c < ALL; ++c) {
        const kiln_index k = k0 + d * STEP;
        held[d][c] = k < p.K && column(c) < p.N
                         ? *reinterpret_cast<const kiln_pack<T, V>*>(lies(c) + k)
                         : kiln_pack<T, V>{};
      }
  };
  kiln_index k0 = (part * 32 + lane) * V;
  if (P::B_GIVEN) {
    // Into the L2 cache: a load would be moved to after the wait.
#pragma unroll
    for (int d = 0; d < DEEP; ++d)
#pragma unroll
      for (int c = 0; c < ALL; ++c) {
        const kiln_index k = k0 + d * STEP;
        if (lane % 2 == 0 && k < p.K && column(c) < p.N) kiln_prefetch(lies(c) + k);
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
        R x[V];
        kiln_load(a + r * p.AM + k, x);
#pragma unroll
        for (int c = 0; c < ALL; ++c)
#pragma unroll
          for (int v = 0; v < V; ++v) {
            acc[r][c] = kiln_fma(x[v], kiln_widen(held[d][c].at[v]), acc[r][c]);
          }
      }
    }
    k0 += STEP * DEEP;
    if (k0 < p.K) fetch(k0);
  }
  R* sums = reinterpret_cast<R*>(kiln_shared_memory());
#pragma unroll
  for (int r = 0; r < ROWS; ++r)
#pragma unroll
    for (int c = 0; c < ALL; ++c) {
#pragma unroll
      for (int mask = 16; mask > 0; mask >>= 1) acc[r][c] += kiln_shuffle(acc[r][c], mask);
      const int at = (part * ROWS + r) * SUMS + c / COLUMNS * TILE_N + first + c % COLUMNS;
      if (lane == 0) sums[at] = acc[r][c];
    }
  __syncthreads();
  for (int e = threadIdx.x; e < ROWS * TILE_N; e += WARPS * 32) {
    const int r = e / TILE_N, c = e % TILE_N;
    auto sum = [&](int at) {
      R sum = sums[at];
#pragma unroll
      for (int i = 1; i < SPLIT; ++i) sum += sums[i * (ROWS * SUMS) + at];
      return sum;
    };
    const R x[1] = {sum(r * SUMS + c)}, y[1] = {P::TWIN ? sum(r * SUMS + TILE_N + c) : R(0)};
    if (n0 + c < p.N) kiln_write_row<P::TWIN>(write, z, r, n0 + c, x, y);
  }
}
