// On the tensor cores (sm_80 and newer), 16-bit elements, D and E up to 256.
// A warp holds 16 rows of q; SPLIT warps share them and take turns over the
// keys of a tile, each with a softmax of its own; they meet at the end.

// `COUNT` rows of WIDTH elements on their way to shared memory; zeros outside.
template <bool ALIGNED, int COUNT, int WIDTH, int PADDED, int THREADS, class T>
__device__ __forceinline__ void kiln_att_fetch(T* to, const T* from, kiln_index stride, kiln_index first,
                                               kiln_index rows) {
  constexpr int CHUNKS = PADDED / 8, PITCH = PADDED + 8;
#pragma unroll
  for (int n = 0; n < (COUNT * CHUNKS + THREADS - 1) / THREADS; ++n) {
    const int chunk = n * THREADS + threadIdx.x;
    if (COUNT * CHUNKS % THREADS != 0 && chunk >= COUNT * CHUNKS) break;
    const int r = chunk / CHUNKS, x = chunk % CHUNKS * 8;
    const kiln_index row = first + r;
    T* at = to + r * PITCH + x;
    if constexpr (ALIGNED && WIDTH % 8 == 0) {
      const bool inside = row < rows && x < WIDTH;
      kiln_copy(at, inside ? from + row * stride + x : from, inside ? 16 : 0);
    } else {
      kiln_pack<T, 8> held = {};
#pragma unroll
      for (int i = 0; i < 8; ++i)
        if (row < rows && x + i < WIDTH) held.at[i] = from[row * stride + x + i];
      *reinterpret_cast<kiln_pack<T, 8>*>(at) = held;
    }
  }
}

template <class P, int ROWS, int KEYS, int SPLIT, class T, class Score, class Write>
__device__ __forceinline__ void kiln_attention_mma(const T* q, const T* k, const T* v, const P& p,
                                                   const Score& score, const Write& write) {
  constexpr int DP = (P::D + 15) / 16 * 16, EP = (P::E + 15) / 16 * 16;
  constexpr int DPITCH = DP + 8, EPITCH = EP + 8;  // Rows that follow each other start 4 banks apart.
  constexpr int WARPS = ROWS / 16, THREADS = WARPS * SPLIT * 32;
  constexpr int OWN = KEYS / SPLIT, NS = OWN / 8, NE = EP / 8, NG = (EP + 31) / 32;
  static_assert(ROWS % 16 == 0 && OWN % 16 == 0, "");
  using Scores = kiln_att_scores<P, Score>;
  constexpr float FACTOR = Scores::factor();

  T* qs = reinterpret_cast<T*>(kiln_shared_memory());
  T* ks = qs + ROWS * DPITCH;      // Two tiles each.
  T* vs = ks + 2 * KEYS * DPITCH;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % WARPS, part = threadIdx.x / 32 / WARPS;
  const int group = lane / 4, pair = lane % 4 * 2;
  const kiln_att_place at = kiln_att_where(p, blockIdx.x, ROWS);
  const kiln_index row = at.i0 + warp * 16 + group;  // And that + 8.

  q += at.b * p.QB + at.h * p.QH;
  k += at.b * p.KB + at.h / P::GROUP * p.KG;
  v += at.b * p.VB + at.h / P::GROUP * p.VG;
  const kiln_index seen = P::CAUSAL && at.i0 + ROWS < p.T ? at.i0 + ROWS : p.T;
  const int tiles = (int)((seen + KEYS - 1) / KEYS);
  auto fetch_k = [&](int tile) {
    if (tile < tiles)
      kiln_att_fetch<P::ALIGNED, KEYS, P::D, DP, THREADS>(ks + tile % 2 * KEYS * DPITCH, k, p.KT,
                                                          (kiln_index)tile * KEYS, p.T);
    kiln_copy_commit();
  };
  auto fetch_v = [&](int tile) {
    if (tile < tiles)
      kiln_att_fetch<P::ALIGNED, KEYS, P::E, EP, THREADS>(vs + tile % 2 * KEYS * EPITCH, v, p.VT,
                                                          (kiln_index)tile * KEYS, p.T);
    kiln_copy_commit();
  };

  constexpr bool HELD = DP <= 128;  // q stays in registers.
  unsigned qf[HELD ? DP / 16 : 1][4];
  float out[NE][4] = {};
  float most[2] = {KILN_ATT_NOTHING, KILN_ATT_NOTHING}, sum[2] = {};
  const T* q_row = qs + (warp * 16 + lane % 16) * DPITCH + lane / 16 * 8;

  kiln_att_fetch<P::ALIGNED, ROWS, P::D, DP, THREADS>(qs, q, p.QS, at.i0, p.S);
  fetch_k(0);
  fetch_v(0);
  for (int tile = 0; tile < tiles; ++tile) {
    kiln_copy_wait<1>();
    __syncthreads();
    fetch_k(tile + 1);
    if constexpr (HELD) {
      if (tile == 0) {
#pragma unroll
        for (int d = 0; d < DP; d += 16) kiln_ldmatrix<false>(qf[d / 16], q_row + d);
      }
    }
    float s[NS][4] = {};
    const T* k_row = ks + tile % 2 * KEYS * DPITCH + (part * OWN + lane / 16 * 8 + lane % 8) * DPITCH + lane / 8 % 2 * 8;
#pragma unroll
    for (int d = 0; d < DP; d += 16) {
      unsigned loaded[4];
      if constexpr (!HELD) kiln_ldmatrix<false>(loaded, q_row + d);
#pragma unroll
      for (int n = 0; n < NS; n += 2) {
        unsigned kf[4];
        kiln_ldmatrix<false>(kf, k_row + n * 8 * DPITCH + d);
        const unsigned* a = loaded;
        if constexpr (HELD) a = qf[d / 16];
        kiln_mma(s[n], a, kf, T{});
        kiln_mma(s[n + 1], a, kf + 2, T{});
      }
    }

    const kiln_index j0 = (kiln_index)tile * KEYS + part * OWN;
    const bool edge = j0 + OWN > p.T || (P::CAUSAL && j0 + OWN - 1 > at.i0 + warp * 16);
    if (edge || !Scores::RAW) {
#pragma unroll
      for (int r = 0; r < 2; ++r) Scores::template see<NS>(p, score, at, row + r * 8, j0 + pair, edge, r, &s[0][0]);
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float now = most[r];
#pragma unroll
      for (int n = 0; n < NS; ++n) now = fmaxf(now, fmaxf(s[n][2 * r], s[n][2 * r + 1]));
      now = fmaxf(now, kiln_shuffle(now, 1));
      now = fmaxf(now, kiln_shuffle(now, 2));
      const float kept = kiln_att_rescale(most[r], now, FACTOR);
      const float base = Scores::base(now);
      most[r] = now;
      sum[r] *= kept;
#pragma unroll
      for (int n = 0; n < NS; ++n)
#pragma unroll
        for (int c = 2 * r; c < 2 * r + 2; ++c) {
          s[n][c] = Scores::power(s[n][c], base);
          sum[r] += s[n][c];
        }
#pragma unroll
      for (int n = 0; n < NE; ++n) {
        out[n][2 * r] *= kept;
        out[n][2 * r + 1] *= kept;
      }
    }

    kiln_copy_wait<1>();
    __syncthreads();
    fetch_v(tile + 1);
    const T* v_row = vs + tile % 2 * KEYS * EPITCH + (part * OWN + lane % 16) * EPITCH + lane / 16 * 8;
#pragma unroll
    for (int j = 0; j < OWN; j += 16) {
      const unsigned a[4] = {kiln_pair(s[j / 8][0], s[j / 8][1], T{}),
                             kiln_pair(s[j / 8][2], s[j / 8][3], T{}),
                             kiln_pair(s[j / 8 + 1][0], s[j / 8 + 1][1], T{}),
                             kiln_pair(s[j / 8 + 1][2], s[j / 8 + 1][3], T{})};
#pragma unroll
      for (int n = 0; n < NE; n += 2) {
        unsigned vf[4];
        kiln_ldmatrix<true>(vf, v_row + j * EPITCH + n * 8);
        kiln_mma(out[n], a, vf, T{});
        kiln_mma(out[n + 1], a, vf + 2, T{});
      }
    }
  }
  kiln_copy_wait<0>();
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    sum[r] += kiln_shuffle(sum[r], 1);
    sum[r] += kiln_shuffle(sum[r], 2);
  }

  if constexpr (SPLIT == 1) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float inverse = Scores::inverse(p, sum[r]);
#pragma unroll
      for (int g = 0; g < NG; ++g) {
        float x[4][2];
#pragma unroll
        for (int n = 0; n < 4; ++n)
#pragma unroll
          for (int c = 0; c < 2; ++c) x[n][c] = g * 4 + n < NE ? out[(g * 4 + n) % NE][2 * r + c] * inverse : 0.0f;
        kiln_att_write32(p, write, at, row + r * 8, g * 32, x);
      }
    }
  } else {
    constexpr int PITCH = EP + 8;
    float* outs = reinterpret_cast<float*>(kiln_shared_memory());
    float* mosts = outs + SPLIT * ROWS * PITCH;
    float* sums = mosts + SPLIT * ROWS;
    __syncthreads();  // All have read the last tile.
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int at_row = part * ROWS + warp * 16 + group + r * 8;
#pragma unroll
      for (int n = 0; n < NE; ++n)
        *reinterpret_cast<kiln_pack<float, 2>*>(outs + at_row * PITCH + n * 8 + pair) = {out[n][2 * r],
                                                                                       out[n][2 * r + 1]};
      if (pair == 0) {
        mosts[at_row] = most[r];
        sums[at_row] = sum[r];
      }
    }
    __syncthreads();
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int at_row = warp * 16 + group + r * 8;
      float all = KILN_ATT_NOTHING, total = 0.0f, share[SPLIT];
#pragma unroll
      for (int i = 0; i < SPLIT; ++i) all = fmaxf(all, mosts[i * ROWS + at_row]);
#pragma unroll
      for (int i = 0; i < SPLIT; ++i) {
        share[i] = kiln_att_rescale(mosts[i * ROWS + at_row], all, FACTOR);
        total += share[i] * sums[i * ROWS + at_row];
      }
      const float inverse = Scores::inverse(p, total);
      for (int g = part; g < NG; g += SPLIT) {
        float x[4][2] = {};
#pragma unroll
        for (int n = 0; n < 4; ++n) {
          if (g * 4 + n >= NE) continue;
#pragma unroll
          for (int i = 0; i < SPLIT; ++i) {
            const kiln_pack<float, 2> got = *reinterpret_cast<const kiln_pack<float, 2>*>(
                outs + (i * ROWS + at_row) * PITCH + g * 32 + n * 8 + pair);
            x[n][0] += share[i] * got.at[0];
            x[n][1] += share[i] * got.at[1];
          }
          x[n][0] *= inverse;
          x[n][1] *= inverse;
        }
        kiln_att_write32(p, write, at, row + r * 8, g * 32, x);
      }
    }
  }
}
