// What the attention kernels share. Each computes softmax(scale * q k^T + mask) v
// for one problem `P`; `score(b, h, i, j, x)` gives the score after masks, and
// `write.row<V>(b, h, i, e, x)` takes V neighbours of an output row.

struct kiln_att_place { kiln_index b, h, i0; };

// Blocks are numbered by rows, then heads, then batches. Where later rows see
// more keys, they come first: what ends last is short.
template <class P> __device__ __forceinline__ kiln_att_place kiln_att_where(const P& p, unsigned block, int rows) {
  const unsigned tiles = (unsigned)((p.S + rows - 1) / rows);
  const unsigned tile = block % tiles, head = block / tiles;
  const unsigned heads = (unsigned)p.H;
  return {(kiln_index)(head / heads), (kiln_index)(head % heads),
          (kiln_index)(P::CAUSAL ? tiles - 1 - tile : tile) * rows};
}

#define KILN_ATT_LOG2E 1.44269504088896340736f
#define KILN_ATT_NOTHING (-__uint_as_float(0x7f800000u))

// A score before the power of two: raw products need no multiplication of their
// own where nothing but the scale stands between.
template <class P, class Score> struct kiln_att_scores {
  enum : bool { RAW = Score::NONE && P::scale() > 0.0f };
  static __device__ constexpr float factor() { return RAW ? P::scale() * KILN_ATT_LOG2E : KILN_ATT_LOG2E; }
  static __device__ __forceinline__ float of(const Score& score, const kiln_att_place& at, kiln_index i,
                                             kiln_index j, float x) {
    if constexpr (RAW) return x;
    else if constexpr (Score::NONE) return x * P::scale();
    else return score(at.b, at.h, i, j, x * P::scale());
  }
  // Where a warp holds 16 rows, this lane two neighbours of every eight columns
  // of row i: `count` groups from column j on. `edge`: it may not see all of them.
  template <int COUNT>
  static __device__ __forceinline__ void see(const P& p, const Score& score, const kiln_att_place& at, kiln_index i,
                                             kiln_index j, bool edge, int half, float* s) {
    kiln_index limit = p.T - j;
    if (P::CAUSAL && i + 1 - j < limit) limit = i + 1 - j;
    const int seen = limit < COUNT * 8 ? (int)limit : COUNT * 8;
    if constexpr (!RAW) {
      const bool row = i < p.S;
#pragma unroll
      for (int n = 0; n < COUNT; ++n)
#pragma unroll
        for (int c = 0; c < 2; ++c)
          if (row && n * 8 + c < seen) s[n * 4 + half * 2 + c] = of(score, at, i, j + n * 8 + c, s[n * 4 + half * 2 + c]);
    }
    if (edge) {
#pragma unroll
      for (int n = 0; n < COUNT; ++n)
#pragma unroll
        for (int c = 0; c < 2; ++c)
          if (n * 8 + c >= seen) s[n * 4 + half * 2 + c] = KILN_ATT_NOTHING;
    }
  }
  // What is taken off the scores of a row whose greatest is `now`, and a score's
  // power after that. Masks hide with numbers that leave no room for a factor:
  // the difference comes first.
  static __device__ __forceinline__ float base(float now) {
    if (now == KILN_ATT_NOTHING) return 0.0f;
    return RAW ? now * factor() : now;
  }
  static __device__ __forceinline__ float power(float x, float base) {
    if constexpr (RAW) return kiln_exp2(fmaf(x, factor(), -base));
    else return kiln_exp2((x - base) * factor());
  }
  // What the sums of a row are multiplied with.
  static __device__ __forceinline__ float inverse(const P& p, float sum) {
    return sum == 0.0f && (Score::EMPTY_ZERO || p.T == 0) ? 0.0f : 1.0f / sum;
  }
};

// What stays of sums whose greatest score was `before`, now that it is `now`.
__device__ __forceinline__ float kiln_att_rescale(float before, float now, float factor) {
  return now == KILN_ATT_NOTHING ? 1.0f : kiln_exp2((before - now) * factor);
}

// Four lanes hold two neighbours each of four groups of eight columns: lane t
// gets the eight of group t.
__device__ __forceinline__ void kiln_att_gather8(const float (&x)[4][2], float (&y)[8]) {
  const int t = threadIdx.x % 4;
  const bool odd = t & 1, upper = t & 2;
  float half[2][4];  // Groups odd and 2 + odd, columns of this lane and its neighbour.
#pragma unroll
  for (int g = 0; g < 2; ++g)
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float kept = odd ? x[2 * g + 1][i] : x[2 * g][i];
      const float got = kiln_shuffle(odd ? x[2 * g][i] : x[2 * g + 1][i], 1);
      half[g][i] = odd ? got : kept;
      half[g][2 + i] = odd ? kept : got;
    }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float kept = upper ? half[1][i] : half[0][i];
    const float got = kiln_shuffle(upper ? half[0][i] : half[1][i], 2);
    y[i] = upper ? got : kept;
    y[4 + i] = upper ? kept : got;
  }
}

// Writes 32 columns from `e0` on of the row that this lane's quad holds.
template <class P, class Write>
__device__ __forceinline__ void kiln_att_write32(const P& p, const Write& write, const kiln_att_place& at,
                                                 kiln_index i, int e0, const float (&x)[4][2]) {
  const int t = threadIdx.x % 4;
  if constexpr (P::E % 8 == 0) {
    float y[8];
    kiln_att_gather8(x, y);
    if (i < p.S && e0 + t * 8 < P::E) write.template row<8>(at.b, at.h, i, e0 + t * 8, y);
  } else {
    if (i >= p.S) return;
#pragma unroll
    for (int g = 0; g < 4; ++g) {
      const int e = e0 + g * 8 + t * 2;
      if constexpr (P::E % 2 == 0) {
        if (e < P::E) write.template row<2>(at.b, at.h, i, e, x[g]);
      } else {
#pragma unroll
        for (int v = 0; v < 2; ++v) {
          const float one[1] = {x[g][v]};
          if (e + v < P::E) write.template row<1>(at.b, at.h, i, e + v, one);
        }
      }
    }
  }
}
