// The same for several rows of 16 bits, on the tensor cores (sm_80 and newer): a warp takes sixteen
// keys at a time, from memory into registers as they are multiplied.
//
//   kiln_attention_decode_mma<P, ROWS, WARPS, CLUSTER>(q, k, v, p, score, write)
//
// P::ALIGNED, D a multiple of 32 and E of 64; up to 16 ROWS. Lane 4 g + t has 8 neighbours of key g, from
// t * 8 on of each 32: two steps of the product over D, whose order q shares. Of values it has 8
// neighbours from g * 8 on of each 64, of keys 2 t, 2 t + 1, and those 8 later: neighbour u of all
// lanes is one product.
template <class P, int ROWS, int WARPS, int CLUSTER, class T, class Score, class Write>
__device__ __forceinline__ void kiln_attention_decode_mma(const T* q, const T* k, const T* v,
                                                          const P& p, const Score& score,
                                                          const Write& write) {
  constexpr int CD = P::D / 32, CE = P::E / 64, KEYS = 16, STEP = CLUSTER * WARPS * KEYS;
  constexpr bool HIGH = ROWS > 8;
  static_assert(P::ALIGNED && P::D % 32 == 0 && P::E % 64 == 0 && ROWS <= 16, "");
  using Scores = kiln_att_scores<P, Score>;
  using Words = kiln_pack<unsigned, 4>;
  constexpr float FACTOR = Scores::factor();
  __shared__ kiln_att_shares<P, ROWS, WARPS> shares;

  const kiln_index rows = p.S * P::GROUP;
  const unsigned parts = (unsigned)((rows + ROWS - 1) / ROWS), block = blockIdx.x / CLUSTER;
  const unsigned rank = CLUSTER > 1 ? kiln_cluster_rank() : 0;
  const kiln_index r0 = (kiln_index)(block % parts) * ROWS, heads = p.H / P::GROUP;
  const kiln_index g = block / parts % heads, b = block / parts / heads;
  if (b >= p.B) return;  // The grid has room for more rows than S, perhaps.
  const int warp = threadIdx.x / 32, own = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
  auto place = [&](kiln_index r) { return kiln_att_place{b, g * P::GROUP + (r0 + r) % P::GROUP, 0}; };
  k += b * p.KB + g * p.KG;
  v += b * p.VB + g * p.VG;
  auto words = [](const T* from, bool inside) {
    return inside ? *reinterpret_cast<const Words*>(from) : Words{};
  };

  Words qs[HIGH ? 2 : 1][CD];
#pragma unroll
  for (int half = 0; half < (HIGH ? 2 : 1); ++half) {
    const kiln_index r = own + half * 8;
    const bool is_row = r < ROWS && r0 + r < rows;
    const T* row = q + b * p.QB + (is_row ? place(r).h * p.QH + (r0 + r) / P::GROUP * p.QS : 0);
#pragma unroll
    for (int c = 0; c < CD; ++c) qs[half][c] = words(row + c * 32 + t * 8, is_row);
  }
  float out[CE][8][4] = {}, most[2] = {KILN_ATT_NOTHING, KILN_ATT_NOTHING}, sum[2] = {};
  const kiln_index last = (r0 + ROWS < rows ? r0 + ROWS : rows) - 1;  // Sees the most.
  const kiln_index seen = P::CAUSAL && last / P::GROUP + 1 < p.T ? last / P::GROUP + 1 : p.T;
  Words ks[2][CD], vs[4][CE];
  auto load_keys = [&](kiln_index base) {
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      const kiln_index j = base + n * 8 + own;
#pragma unroll
      for (int c = 0; c < CD; ++c) ks[n][c] = words(k + j * p.KT + c * 32 + t * 8, j < seen);
    }
  };
  auto load_values = [&](kiln_index base) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const kiln_index j = base + t * 2 + i % 2 + i / 2 * 8;
#pragma unroll
      for (int c = 0; c < CE; ++c) vs[i][c] = words(v + j * p.VT + c * 64 + own * 8, j < seen);
    }
  };
  const kiln_index begin = ((kiln_index)rank * WARPS + warp) * KEYS;
  load_keys(begin);
  load_values(begin);
#pragma unroll 1
  for (kiln_index base = begin; base < seen; base += STEP) {
    float s[2][4] = {};
#pragma unroll
    for (int n = 0; n < 2; ++n)
#pragma unroll
      for (int c = 0; c < CD; ++c)
#pragma unroll
        for (int m = 0; m < 4; m += 2) {
          const unsigned a[4] = {qs[0][c].at[m], HIGH ? qs[HIGH][c].at[m] : 0u, qs[0][c].at[m + 1],
                                 HIGH ? qs[HIGH][c].at[m + 1] : 0u};
          kiln_mma(s[n], a, ks[n][c].at + m, T{});
        }
    // What comes next takes the registers of what is done, and is on its way meanwhile.
    load_keys(base + STEP);
#pragma unroll
    for (int half = 0; half < (HIGH ? 2 : 1); ++half) {
      const kiln_index r = own + half * 8, i = (r0 + r) / P::GROUP;
      const bool is_row = r < ROWS && r0 + r < rows;
      float now = most[half];
#pragma unroll
      for (int n = 0; n < 2; ++n)
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          const kiln_index j = base + n * 8 + t * 2 + c;
          float& x = s[n][half * 2 + c];
          x = !is_row || j >= seen || (P::CAUSAL && j > i) ? KILN_ATT_NOTHING
                                                           : Scores::of(score, place(r), i, j, x);
          now = fmaxf(now, x);
        }
      now = fmaxf(now, kiln_shuffle(now, 1));
      now = fmaxf(now, kiln_shuffle(now, 2));
      const float kept = kiln_att_rescale(most[half], now, FACTOR), zero = Scores::base(now);
      most[half] = now;
      sum[half] *= kept;
#pragma unroll
      for (int n = 0; n < 2; ++n)
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          float& x = s[n][half * 2 + c];
          x = Scores::power(x, zero);
          sum[half] += x;
        }
#pragma unroll
      for (int c = 0; c < CE; ++c)
#pragma unroll
        for (int u = 0; u < 8; ++u) {
          out[c][u][half * 2] *= kept;
          out[c][u][half * 2 + 1] *= kept;
        }
    }
    const unsigned a[4] = {kiln_pair(s[0][0], s[0][1], T{}),
                           HIGH ? kiln_pair(s[0][2], s[0][3], T{}) : 0u,
                           kiln_pair(s[1][0], s[1][1], T{}),
                           HIGH ? kiln_pair(s[1][2], s[1][3], T{}) : 0u};
#pragma unroll
    for (int c = 0; c < CE; ++c)
#pragma unroll
      for (int u = 0; u < 8; ++u) {
        auto both = [&](int i) {
          const unsigned low = vs[i][c].at[u / 2], high = vs[i + 1][c].at[u / 2];
          return u % 2 ? low >> 16 | (high & 0xffff0000u) : (low & 0xffffu) | high << 16;
        };
        const unsigned of[2] = {both(0), both(2)};
        kiln_mma(out[c][u], a, of, T{});
      }
    load_values(base + STEP);
  }
#pragma unroll
  for (int half = 0; half < (HIGH ? 2 : 1); ++half) {
    const int r = own + half * 8;
    sum[half] += kiln_shuffle(sum[half], 1);
    sum[half] += kiln_shuffle(sum[half], 2);
    if (r >= ROWS) continue;
    if (t == 0) {
      shares.mosts[warp][r] = most[half];
      shares.sums[warp][r] = sum[half];
    }
#pragma unroll
    for (int c = 0; c < CE; ++c)
#pragma unroll
      for (int u = 0; u < 8; ++u) {
        shares.outs[warp][r][c * 64 + t * 16 + u] = out[c][u][half * 2];
        shares.outs[warp][r][c * 64 + t * 16 + 8 + u] = out[c][u][half * 2 + 1];
      }
  }
  kiln_att_meet<CLUSTER, T>(shares, p, score, write, b, g, r0, rows, rank);
}
