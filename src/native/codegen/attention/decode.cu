// Few rows of q against many keys: bound by reading k and v, once for all heads
// of q that share them. LANES lanes hold a key; each such group walks keys of its
// own with a softmax of its own; groups, warps and the CLUSTER blocks that share
// the work (sm_90) meet at the end.

template <int N> __device__ constexpr int kiln_att_power() {
  int power = 1;
  while (power < N) power *= 2;
  return power;
}

// `V` elements of a row from `x` on; zeros outside.
template <bool ALIGNED, int WIDTH, int V, class T>
__device__ __forceinline__ kiln_pack<T, V> kiln_att_part(const T* row, int x, bool inside) {
  kiln_pack<T, V> part = {};
  if constexpr (ALIGNED && WIDTH % V == 0) {
    if (inside && x < WIDTH) part = *reinterpret_cast<const kiln_pack<T, V>*>(row + x);
  } else {
#pragma unroll
    for (int i = 0; i < V; ++i)
      if (inside && x + i < WIDTH) part.at[i] = row[x + i];
  }
  return part;
}

// What a block's warps and a cluster's blocks share at the end: sums of values, the greatest score
// and the sum of powers of each row.
template <class P, int ROWS, int WARPS> struct kiln_att_shares {
  float outs[WARPS][ROWS][P::E], mosts[WARPS][ROWS], sums[WARPS][ROWS], tops[ROWS], totals[ROWS];
};

// Adds them up and hands them to `write`: rows from `r0` on, of `rows`, of group `g` in batch `b`.
template <int CLUSTER, class T, class P, int ROWS, int WARPS, class Score, class Write>
__device__ __forceinline__ void kiln_att_meet(kiln_att_shares<P, ROWS, WARPS>& all_of, const P& p,
                                              const Score&, const Write& write, kiln_index b,
                                              kiln_index g, kiln_index r0, kiln_index rows,
                                              unsigned rank) {
  using Scores = kiln_att_scores<P, Score>;
  constexpr float FACTOR = Scores::factor();
  constexpr int OUT = sizeof(T) == 2 && P::E % 8 == 0 ? 8 : P::E % 4 == 0 ? 4 : P::E % 2 == 0 ? 2 : 1;
  auto& outs = all_of.outs;
  auto& mosts = all_of.mosts;
  auto& sums = all_of.sums;
  auto& tops = all_of.tops;
  auto& totals = all_of.totals;
  __syncthreads();
  constexpr int THREADS = WARPS * 32, COLUMNS = P::E / OUT;
  auto finish = [&](int r, int e, float(&y)[OUT], float total) {
    const float inverse = Scores::inverse(p, total);
#pragma unroll
    for (int i = 0; i < OUT; ++i) y[i] *= inverse;
    if (r0 + r < rows) write.template row<OUT>(b, g * P::GROUP + (r0 + r) % P::GROUP, (r0 + r) / P::GROUP, e, y);
  };
  for (int n = threadIdx.x; n < ROWS * COLUMNS; n += THREADS) {
    const int r = n / COLUMNS, e = n % COLUMNS * OUT;
    float all = KILN_ATT_NOTHING, total = 0.0f, y[OUT] = {};
#pragma unroll
    for (int w = 0; w < WARPS; ++w) all = fmaxf(all, mosts[w][r]);
#pragma unroll
    for (int w = 0; w < WARPS; ++w) {
      const float share = kiln_att_rescale(mosts[w][r], all, FACTOR);
      total += share * sums[w][r];
#pragma unroll
      for (int i = 0; i < OUT; ++i) y[i] += share * outs[w][r][e + i];
    }
    if constexpr (CLUSTER == 1) {
      finish(r, e, y, total);
    } else {
#pragma unroll
      for (int i = 0; i < OUT; ++i) outs[0][r][e + i] = y[i];
      if (e == 0) {
        tops[r] = all;
        totals[r] = total;
      }
    }
  }
  if constexpr (CLUSTER > 1) {
    kiln_cluster_sync();
    for (int n = threadIdx.x * CLUSTER + rank; n < ROWS * COLUMNS; n += THREADS * CLUSTER) {
      const int r = n / COLUMNS, e = n % COLUMNS * OUT;
      float top[CLUSTER], part[CLUSTER], x[CLUSTER][OUT];
#pragma unroll
      for (int c = 0; c < CLUSTER; ++c) {
        top[c] = kiln_cluster_read(&tops[r], c);
        part[c] = kiln_cluster_read(&totals[r], c);
#pragma unroll
        for (int i = 0; i < OUT; ++i) x[c][i] = kiln_cluster_read(&outs[0][r][e + i], c);
      }
      float all = KILN_ATT_NOTHING, total = 0.0f, y[OUT] = {};
#pragma unroll
      for (int c = 0; c < CLUSTER; ++c) all = fmaxf(all, top[c]);
#pragma unroll
      for (int c = 0; c < CLUSTER; ++c) {
        const float share = kiln_att_rescale(top[c], all, FACTOR);
        total += share * part[c];
#pragma unroll
        for (int i = 0; i < OUT; ++i) y[i] += share * x[c][i];
      }
      finish(r, e, y, total);
    }
    kiln_cluster_sync();  // Others have read this block's memory.
  }
}

template <class P, int ROWS, int WARPS, int CLUSTER, class T, class Score, class Write>
__device__ __forceinline__ void kiln_attention_decode(const T* q, const T* k, const T* v, const P& p,
                                                      const Score& score, const Write& write) {
  constexpr int V = 16 / sizeof(T), LONGEST = P::D > P::E ? P::D : P::E;
  constexpr int WANTED = kiln_att_power<(LONGEST + V - 1) / V>(), LANES = WANTED < 32 ? WANTED : 32;
  constexpr int CD = (P::D + V * LANES - 1) / (V * LANES), CE = (P::E + V * LANES - 1) / (V * LANES);
  constexpr int GROUPS = 32 / LANES, WALKERS = CLUSTER * WARPS * GROUPS, AHEAD = ROWS > 4 ? 2 : 4;
  using Scores = kiln_att_scores<P, Score>;
  constexpr float FACTOR = Scores::factor();
  __shared__ kiln_att_shares<P, ROWS, WARPS> shares;

  // A block's rows: some of those of S positions of GROUP heads, heads first.
  const kiln_index rows = p.S * P::GROUP;
  const unsigned parts = (unsigned)((rows + ROWS - 1) / ROWS), block = blockIdx.x / CLUSTER;
  const unsigned rank = CLUSTER > 1 ? kiln_cluster_rank() : 0;
  const kiln_index r0 = (kiln_index)(block % parts) * ROWS, heads = p.H / P::GROUP;
  const kiln_index g = block / parts % heads, b = block / parts / heads;
  if (b >= p.B) return;  // The grid has room for more rows than S, perhaps.
  const int warp = threadIdx.x / 32, lane = threadIdx.x % LANES, group = threadIdx.x % 32 / LANES;
  auto place = [&](int r) { return kiln_att_place{b, g * P::GROUP + (r0 + r) % P::GROUP, 0}; };
  k += b * p.KB + g * p.KG;
  v += b * p.VB + g * p.VG;

  float x[ROWS][CD * V], out[ROWS][CE * V] = {}, most[ROWS], sum[ROWS] = {};
#pragma unroll
  for (int r = 0; r < ROWS; ++r) {
    most[r] = KILN_ATT_NOTHING;
    const T* row = q + b * p.QB + place(r).h * p.QH + (r0 + r) / P::GROUP * p.QS;
#pragma unroll
    for (int c = 0; c < CD; ++c) {
      const auto part = kiln_att_part<P::ALIGNED, P::D, V>(row, (c * LANES + lane) * V, r0 + r < rows);
#pragma unroll
      for (int i = 0; i < V; ++i) x[r][c * V + i] = kiln_widen(part.at[i]);
    }
  }
  const kiln_index last = (r0 + ROWS < rows ? r0 + ROWS : rows) - 1;  // Sees the most.
  const kiln_index seen = P::CAUSAL && last / P::GROUP + 1 < p.T ? last / P::GROUP + 1 : p.T;
  const kiln_index first = ((kiln_index)rank * WARPS + warp) * GROUPS;
  // The bound is the same for a whole warp.
  for (kiln_index base = first; base < seen; base += WALKERS * AHEAD) {
    kiln_pack<T, V> kp[AHEAD][CD], vp[AHEAD][CE];
#pragma unroll
    for (int a = 0; a < AHEAD; ++a) {
      const kiln_index j = base + a * WALKERS + group;
#pragma unroll
      for (int c = 0; c < CD; ++c)
        kp[a][c] = kiln_att_part<P::ALIGNED, P::D, V>(k + j * p.KT, (c * LANES + lane) * V, j < seen);
#pragma unroll
      for (int c = 0; c < CE; ++c)
        vp[a][c] = kiln_att_part<P::ALIGNED, P::E, V>(v + j * p.VT, (c * LANES + lane) * V, j < seen);
    }
    float s[ROWS][AHEAD] = {};
#pragma unroll
    for (int a = 0; a < AHEAD; ++a)
#pragma unroll
      for (int c = 0; c < CD; ++c)
#pragma unroll
        for (int i = 0; i < V; ++i) {
          const float y = kiln_widen(kp[a][c].at[i]);
#pragma unroll
          for (int r = 0; r < ROWS; ++r) s[r][a] = fmaf(x[r][c * V + i], y, s[r][a]);
        }
#pragma unroll
    for (int mask = LANES / 2; mask > 0; mask >>= 1)
#pragma unroll
      for (int r = 0; r < ROWS; ++r)
#pragma unroll
        for (int a = 0; a < AHEAD; ++a) s[r][a] += kiln_shuffle(s[r][a], mask);
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
      const kiln_index i = (r0 + r) / P::GROUP;
      float now = most[r];
#pragma unroll
      for (int a = 0; a < AHEAD; ++a) {
        const kiln_index j = base + a * WALKERS + group;
        if (r0 + r >= rows || j >= seen || (P::CAUSAL && j > i)) s[r][a] = KILN_ATT_NOTHING;
        else s[r][a] = Scores::of(score, place(r), i, j, s[r][a]);
        now = fmaxf(now, s[r][a]);
      }
      const float kept = kiln_att_rescale(most[r], now, FACTOR);
      const float zero = now == KILN_ATT_NOTHING ? 0.0f : now;
      most[r] = now;
      sum[r] *= kept;
#pragma unroll
      for (int e = 0; e < CE * V; ++e) out[r][e] *= kept;
#pragma unroll
      for (int a = 0; a < AHEAD; ++a) {
        s[r][a] = kiln_exp2((s[r][a] - zero) * FACTOR);
        sum[r] += s[r][a];
      }
    }
#pragma unroll
    for (int a = 0; a < AHEAD; ++a)
#pragma unroll
      for (int c = 0; c < CE; ++c)
#pragma unroll
        for (int i = 0; i < V; ++i) {
          const float y = kiln_widen(vp[a][c].at[i]);
#pragma unroll
          for (int r = 0; r < ROWS; ++r) out[r][c * V + i] = fmaf(s[r][a], y, out[r][c * V + i]);
        }
  }

  // The groups of a warp meet in registers, the warps in shared memory.
#pragma unroll
  for (int mask = LANES; mask < 32; mask <<= 1)
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
      const float other = kiln_shuffle(most[r], mask), now = fmaxf(most[r], other);
      const float kept = kiln_att_rescale(most[r], now, FACTOR);
      most[r] = now;
      sum[r] *= kept;
      sum[r] += kiln_shuffle(sum[r], mask);
#pragma unroll
      for (int e = 0; e < CE * V; ++e) {
        out[r][e] *= kept;
        out[r][e] += kiln_shuffle(out[r][e], mask);
      }
    }
  if (group == 0) {
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
      if (lane == 0) {
        shares.mosts[warp][r] = most[r];
        shares.sums[warp][r] = sum[r];
      }
#pragma unroll
      for (int c = 0; c < CE; ++c)
#pragma unroll
        for (int i = 0; i < V; ++i) {
          const int e = (c * LANES + lane) * V + i;
          if (e < P::E) shares.outs[warp][r][e] = out[r][c * V + i];
        }
    }
  }
  kiln_att_meet<CLUSTER, T>(shares, p, score, write, b, g, r0, rows, rank);
}
