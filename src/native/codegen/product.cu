// Products of matrices: a[m, k] * b[k, n], any strides, f32 accumulators.
// `write(m, n, x)` receives V neighbours of a row at a time.

template <kiln_index M_, kiln_index N_, kiln_index K_, kiln_index AM_, kiln_index AK_,
          kiln_index BK_, kiln_index BN_, bool ALIGNED_>
struct kiln_problem {
  static constexpr kiln_index M = M_, N = N_, K = K_;
  static constexpr kiln_index AM = AM_, AK = AK_, BK = BK_, BN = BN_;  // Strides.
  static constexpr bool ALIGNED = ALIGNED_;  // Each batch starts at a multiple of 8 elements.
};

// On the ordinary cores. Tiles of TM x TN a thread.
template <class P, int TILE_M, int TILE_N, int TILE_K, int TM, int TN, int V, class T, class Write>
__device__ __forceinline__ void kiln_product_cores(const T* a, const T* b, const Write& write) {
  constexpr int THREADS = (TILE_M / TM) * (TILE_N / TN);
  constexpr int LOADS_A = TILE_M * TILE_K / THREADS, LOADS_B = TILE_N * TILE_K / THREADS;
  static_assert(LOADS_A * THREADS == TILE_M * TILE_K && LOADS_B * THREADS == TILE_N * TILE_K, "");
  __shared__ float as[TILE_K][TILE_M + 4];
  __shared__ float bs[TILE_K][TILE_N + 4];
  const int t = threadIdx.x;
  const int tm = t / (TILE_N / TN) * TM, tn = t % (TILE_N / TN) * TN;
  const kiln_index m0 = (kiln_index)blockIdx.x * TILE_M, n0 = (kiln_index)blockIdx.y * TILE_N;
  float ra[LOADS_A], rb[LOADS_B], acc[TM][TN] = {};

  // Neighbouring threads walk the dimension in which memory is dense.
  auto at_a = [&](int i, int& m, int& k) {
    const int e = i * THREADS + t;
    if (P::AK == 1) { m = e / TILE_K; k = e % TILE_K; } else { m = e % TILE_M; k = e / TILE_M; }
  };
  auto at_b = [&](int i, int& n, int& k) {
    const int e = i * THREADS + t;
    if (P::BK == 1) { n = e / TILE_K; k = e % TILE_K; } else { n = e % TILE_N; k = e / TILE_N; }
  };
  auto fetch = [&](kiln_index k0) {
#pragma unroll
    for (int i = 0; i < LOADS_A; ++i) {
      int m, k;
      at_a(i, m, k);
      const bool inside = m0 + m < P::M && k0 + k < P::K;
      ra[i] = inside ? kiln_widen(a[(m0 + m) * P::AM + (k0 + k) * P::AK]) : 0.0f;
    }
#pragma unroll
    for (int i = 0; i < LOADS_B; ++i) {
      int n, k;
      at_b(i, n, k);
      const bool inside = n0 + n < P::N && k0 + k < P::K;
      rb[i] = inside ? kiln_widen(b[(n0 + n) * P::BN + (k0 + k) * P::BK]) : 0.0f;
    }
  };

  fetch(0);
  for (kiln_index k0 = 0; k0 < P::K; k0 += TILE_K) {
#pragma unroll
    for (int i = 0; i < LOADS_A; ++i) {
      int m, k;
      at_a(i, m, k);
      as[k][m] = ra[i];
    }
#pragma unroll
    for (int i = 0; i < LOADS_B; ++i) {
      int n, k;
      at_b(i, n, k);
      bs[k][n] = rb[i];
    }
    __syncthreads();
    if (k0 + TILE_K < P::K) fetch(k0 + TILE_K);
#pragma unroll
    for (int k = 0; k < TILE_K; ++k) {
      float x[TM], y[TN];
#pragma unroll
      for (int i = 0; i < TM; ++i) x[i] = as[k][tm + i];
#pragma unroll
      for (int j = 0; j < TN; ++j) y[j] = bs[k][tn + j];
#pragma unroll
      for (int i = 0; i < TM; ++i)
#pragma unroll
        for (int j = 0; j < TN; ++j) acc[i][j] = fmaf(x[i], y[j], acc[i][j]);
    }
    __syncthreads();
  }
#pragma unroll
  for (int i = 0; i < TM; ++i) {
    const kiln_index m = m0 + tm + i;
    if (m >= P::M) continue;
#pragma unroll
    for (int j = 0; j < TN; j += V) {
      const kiln_index n = n0 + tn + j;
      if (n < P::N) write(m, n, &acc[i][j]);
    }
  }
}

// A panel of ROWS x K 16-bit elements on its way to shared memory, [row][k].
template <kiln_index ROWS, kiln_index K, kiln_index ROW, kiln_index STEP, bool ALIGNED, int TILE,
          int TILE_K, int THREADS>
struct kiln_panel {
  static constexpr int CHUNKS = TILE * TILE_K / 8 / THREADS;
  static_assert(CHUNKS * 8 * THREADS == TILE * TILE_K, "");
  // Chunks of eight lie along k, unless only the rows are dense.
  static constexpr bool ALONG_K = STEP == 1 || ROW != 1;
  static constexpr bool WHOLE = ALIGNED && (ALONG_K ? STEP == 1 && K % 8 == 0 && ROW % 8 == 0
                                                    : ROWS % 8 == 0 && STEP % 8 == 0);
  using chunk = kiln_pack<unsigned short, 8>;
  chunk held[CHUNKS];

  static __device__ __forceinline__ void at(int i, int& row, int& k) {
    const int e = i * THREADS + threadIdx.x;
    if (ALONG_K) { row = e / (TILE_K / 8); k = e % (TILE_K / 8) * 8; }
    else { row = e % (TILE / 8) * 8; k = e / (TILE / 8); }
  }
  template <class T>
  __device__ __forceinline__ void fetch(const T* p, kiln_index row0, kiln_index k0) {
#pragma unroll
    for (int i = 0; i < CHUNKS; ++i) {
      int r, kk;
      at(i, r, kk);
      const kiln_index row = row0 + r, k = k0 + kk;
      const T* from = p + row * ROW + k * STEP;
      if (WHOLE) {
        held[i] = row < ROWS && k < K ? *reinterpret_cast<const chunk*>(from) : chunk{};
      } else {
#pragma unroll
        for (int j = 0; j < 8; ++j) {
          const bool inside = ALONG_K ? row < ROWS && k + j < K : row + j < ROWS && k < K;
          held[i].at[j] = inside ? from[j * (ALONG_K ? STEP : ROW)].bits : (unsigned short)0;
        }
      }
    }
  }
  __device__ __forceinline__ void keep(unsigned short (*to)[TILE_K + 8]) const {
#pragma unroll
    for (int i = 0; i < CHUNKS; ++i) {
      int r, k;
      at(i, r, k);
      if (ALONG_K) {
        *reinterpret_cast<chunk*>(&to[r][k]) = held[i];
      } else {
#pragma unroll
        for (int j = 0; j < 8; ++j) to[r + j][k] = held[i].at[j];
      }
    }
  }
};

#ifndef KILN_EMULATED
__device__ __forceinline__ void kiln_mma(float* c, const unsigned* a, const unsigned* b, kiln_bf16) {
#if __CUDA_ARCH__ >= 800
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}
__device__ __forceinline__ void kiln_mma(float* c, const unsigned* a, const unsigned* b, kiln_f16) {
#if __CUDA_ARCH__ >= 800
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}
#endif

// On the tensor cores (sm_80 and newer): 16-bit operands, WARPS_M x WARPS_N warps.
template <class P, int TILE_M, int TILE_N, int WARPS_M, int WARPS_N, int V, class T, class Write>
__device__ __forceinline__ void kiln_product_tensor(const T* a, const T* b, const Write& write) {
  constexpr int TILE_K = 32, THREADS = WARPS_M * WARPS_N * 32;
  constexpr int MS = TILE_M / WARPS_M / 16, NS = TILE_N / WARPS_N / 8;
  // Eight elements of padding: the 32 words of a fragment lie in 32 banks.
  __shared__ __align__(16) unsigned short as[2][TILE_M][TILE_K + 8];
  __shared__ __align__(16) unsigned short bs[2][TILE_N][TILE_K + 8];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int group = lane / 4, pair = lane % 4 * 2;
  const int wm = warp / WARPS_N * (MS * 16), wn = warp % WARPS_N * (NS * 8);
  const kiln_index m0 = (kiln_index)blockIdx.x * TILE_M, n0 = (kiln_index)blockIdx.y * TILE_N;
  kiln_panel<P::M, P::K, P::AM, P::AK, P::ALIGNED, TILE_M, TILE_K, THREADS> pa;
  kiln_panel<P::N, P::K, P::BN, P::BK, P::ALIGNED, TILE_N, TILE_K, THREADS> pb;
  float acc[MS][NS][4] = {};

  pa.fetch(a, m0, 0);
  pb.fetch(b, n0, 0);
  pa.keep(as[0]);
  pb.keep(bs[0]);
  __syncthreads();
  int now = 0;
  for (kiln_index k0 = 0; k0 < P::K; k0 += TILE_K, now ^= 1) {
    const bool more = k0 + TILE_K < P::K;
    if (more) {
      pa.fetch(a, m0, k0 + TILE_K);
      pb.fetch(b, n0, k0 + TILE_K);
    }
#pragma unroll
    for (int k = 0; k < TILE_K; k += 16) {
      auto word = [&](const unsigned short& at) { return *reinterpret_cast<const unsigned*>(&at); };
      unsigned fa[MS][4], fb[NS][2];
#pragma unroll
      for (int i = 0; i < MS; ++i) {
        const int m = wm + i * 16 + group;
        fa[i][0] = word(as[now][m][k + pair]);
        fa[i][1] = word(as[now][m + 8][k + pair]);
        fa[i][2] = word(as[now][m][k + 8 + pair]);
        fa[i][3] = word(as[now][m + 8][k + 8 + pair]);
      }
#pragma unroll
      for (int j = 0; j < NS; ++j) {
        const int n = wn + j * 8 + group;
        fb[j][0] = word(bs[now][n][k + pair]);
        fb[j][1] = word(bs[now][n][k + 8 + pair]);
      }
#pragma unroll
      for (int i = 0; i < MS; ++i)
#pragma unroll
        for (int j = 0; j < NS; ++j) kiln_mma(acc[i][j], fa[i], fb[j], T{});
    }
    if (more) {
      pa.keep(as[now ^ 1]);
      pb.keep(bs[now ^ 1]);
    }
    __syncthreads();
  }
#pragma unroll
  for (int i = 0; i < MS; ++i)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const kiln_index m = m0 + wm + i * 16 + half * 8 + group;
      if (m >= P::M) continue;
#pragma unroll
      for (int j = 0; j < NS; ++j)
#pragma unroll
        for (int v = 0; v < 2; v += V) {
          const kiln_index n = n0 + wn + j * 8 + pair + v;
          if (n < P::N) write(m, n, &acc[i][j][half * 2 + v]);
        }
    }
}
