// Products on the ordinary cores: any sizes, any strides, fused multiply-adds in f32, of
// f64 in f64.
//
//   kiln_product_cores<P, TILE_M, TILE_N, TILE_K, TM>(a, b, p, write, block = blockIdx.x)
//
// A thread sums TM x 8 products; (TILE_M / TM) * (TILE_N / 8) threads; a grid of
// tiles x BATCH blocks in x. Dynamic shared memory: 2 * TILE_K * (TILE_M + TILE_N
// + 8) * 4 bytes, of f64 * 8. A problem has two constants more, A_FOURS and B_FOURS: whether the
// dimension along which four neighbours are read has whole fours.

// TILE rows (of A, or columns of B) x TILE_K, as numbers of type R, [k][row]. WHOLE: four neighbours
// may be read at once. FOURS: there are all four of them, or none.
template <class R, int TILE, int TILE_K, bool ALONG_K, bool WHOLE, bool FOURS, int THREADS>
struct kiln_number_panel {
  enum : int { PITCH = TILE + 4, LOADS = TILE * TILE_K / 4 / THREADS };
  static_assert(LOADS * 4 * THREADS == TILE * TILE_K, "");
  R held[LOADS][4];

  // Four neighbours along k or along the rows, as memory has them.
  static __device__ __forceinline__ void at(int i, int& row, int& k) {
    const int e = i * THREADS + threadIdx.x;
    if (ALONG_K) { row = e / (TILE_K / 4); k = e % (TILE_K / 4) * 4; }
    else { row = e % (TILE / 4) * 4; k = e / (TILE / 4); }
  }
  template <class T>
  __device__ __forceinline__ void fetch(const T* p, kiln_index row0, kiln_index k0, kiln_index rows,
                                        kiln_index ks, kiln_index row_stride,
                                        kiln_index k_stride) {
#pragma unroll
    for (int i = 0; i < LOADS; ++i) {
      int r, kk;
      at(i, r, kk);
      const kiln_index row = row0 + r, k = k0 + kk;
      const kiln_index left = ALONG_K ? (row < rows ? ks - k : 0) : (k < ks ? rows - row : 0);
      const T* from = p + row * row_stride + k * k_stride;
      if (WHOLE && left >= 4) {
        kiln_load(from, held[i]);
      } else {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const bool there = !(WHOLE && FOURS) && j < left;
          held[i][j] = there ? kiln_widen(from[j * (ALONG_K ? k_stride : row_stride)]) : R(0);
        }
      }
    }
  }
  __device__ __forceinline__ void keep(R* to) const {
#pragma unroll
    for (int i = 0; i < LOADS; ++i) {
      int r, k;
      at(i, r, k);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        if (ALONG_K) to[(k + j) * PITCH + r] = held[i][j];
        else to[k * PITCH + r + j] = held[i][j];
      }
    }
  }
};

template <class P, int TILE_M, int TILE_N, int TILE_K, int TM, class T, class Write>
__device__ __forceinline__ void kiln_product_cores(const T* a, const T* b, const P& p,
                                                   const Write& write, unsigned block = blockIdx.x) {
  using R = decltype(kiln_widen(T{}));
  constexpr int ACROSS = TILE_N / 8, THREADS = TILE_M / TM * ACROSS;
  kiln_number_panel<R, TILE_M, TILE_K, !P::A_ALONG_M, P::ALIGNED && (P::A_ALONG_K || P::A_ALONG_M),
                   P::A_FOURS, THREADS> pa;
  kiln_number_panel<R, TILE_N, TILE_K, !P::B_ALONG_N, P::ALIGNED && (P::B_ALONG_K || P::B_ALONG_N),
                   P::B_FOURS, THREADS> pb;
  constexpr int STAGE_A = TILE_K * pa.PITCH, STAGE_B = TILE_K * pb.PITCH;
  R* as = reinterpret_cast<R*>(kiln_shared_memory());
  R* bs = as + 2 * STAGE_A;
  const kiln_place at = kiln_tile<TILE_M, TILE_N, 1>(p, block);
  if (P::GROUPED && at.m >= at.rows) return;
  const kiln_index depth = kiln_depth(p, at);
  a += p.A_BATCH(at.z);
  b += p.B_BATCH(at.matrix);
  const int tm = threadIdx.x / ACROSS * TM, tn = threadIdx.x % ACROSS * 8;
  R acc[TM][8] = {};

  int now = 0;
  // Each pass fetches what the next one multiplies: the first one that alone. One copy of
  // all of it, as of the sums below, or the compiler takes several times as long.
#pragma unroll 1
  for (kiln_index next = 0; next < depth + TILE_K; next += TILE_K, now ^= 1) {
    R* sa = as + now * STAGE_A;
    R* sb = bs + now * STAGE_B;
    if (next > 0) {
      pa.keep(sa);
      pb.keep(sb);
      __syncthreads();  // All of this stage is there; the one before, nobody reads any more.
    }
    if (next < depth) {
      pa.fetch(a, at.m, next, at.rows, p.K, p.AM, p.AK);
      pb.fetch(b, at.n, next, p.N, p.K, p.BN, p.BK);
    }
    if (next == 0) continue;
#pragma unroll(TM == 8 ? 8 : 4)
    for (int k = 0; k < TILE_K; ++k) {
      R x[TM], y[8];
#pragma unroll
      for (int i = 0; i < TM; ++i) x[i] = sa[k * pa.PITCH + tm + i];
#pragma unroll
      for (int j = 0; j < 8; ++j) y[j] = sb[k * pb.PITCH + tn + j];
#pragma unroll
      for (int i = 0; i < TM; ++i)
#pragma unroll
        for (int j = 0; j < 8; ++j) acc[i][j] = kiln_fma(x[i], y[j], acc[i][j]);
    }
  }
  const kiln_index n = at.n + tn;
#pragma unroll
  for (int i = 0; i < TM; ++i) {
    const kiln_index m = at.m + tm + i;
    if (m >= at.rows || n >= p.N) continue;
    if constexpr (P::WIDE) {
      write.template row<8>(at.z, m, n, acc[i]);
    } else {
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        const R one[1] = {acc[i][j]};
        if (n + j < p.N) write.template row<1>(at.z, m, n + j, one);
      }
    }
  }
}
