// On the ordinary cores: any type, any D and E, exact f32 products. 256 threads
// as 16 x 16 hold ROWS x KEYS scores and ROWS x WIDTH sums; blocks that differ in
// their columns of the output compute the same scores.

template <class P, int ROWS, int KEYS, int WIDTH, class T, class Score, class Write>
__device__ __forceinline__ void kiln_attention_cores(const T* q, const T* k, const T* v, const P& p,
                                                     const Score& score, const Write& write) {
  constexpr int STEP_D = 32, STEP_J = 16, THREADS = 256;
  constexpr int TM = ROWS / 16, TN = KEYS / 16, TE = WIDTH / 16, COLUMNS = (P::E + WIDTH - 1) / WIDTH;
  constexpr auto fits = [](int lanes) { return TE % lanes == 0 && P::E % lanes == 0; };
  constexpr int V = sizeof(T) == 2 && fits(8) ? 8 : fits(4) ? 4 : fits(2) ? 2 : 1;
  using Scores = kiln_att_scores<P, Score>;
  constexpr float FACTOR = Scores::factor();
  __shared__ float qs[STEP_D][ROWS + 1], ks[STEP_D][KEYS + 1], ps[ROWS][KEYS + 1], vs[STEP_J][WIDTH];
  const int t = threadIdx.x, tx = t % 16, ty = t / 16;
  const int e0 = (int)(blockIdx.x % COLUMNS) * WIDTH;
  const kiln_att_place at = kiln_att_where(p, blockIdx.x / COLUMNS, ROWS);
  q += at.b * p.QB + at.h * p.QH;
  k += at.b * p.KB + at.h / P::GROUP * p.KG;
  v += at.b * p.VB + at.h / P::GROUP * p.VG;
  const kiln_index seen = P::CAUSAL && at.i0 + ROWS < p.T ? at.i0 + ROWS : p.T;

  float out[TM][TE] = {}, most[TM], sum[TM] = {};
#pragma unroll
  for (int m = 0; m < TM; ++m) most[m] = KILN_ATT_NOTHING;
  for (kiln_index j0 = 0; j0 < seen; j0 += KEYS) {
    float s[TM][TN] = {};
    for (int d0 = 0; d0 < P::D; d0 += STEP_D) {
      __syncthreads();
#pragma unroll
      for (int n = 0; n < ROWS * STEP_D / THREADS; ++n) {
        const int r = (n * THREADS + t) / STEP_D, d = t % STEP_D;
        const kiln_index i = at.i0 + r;
        qs[d][r] = i < p.S && d0 + d < P::D ? kiln_widen(q[i * p.QS + d0 + d]) : 0.0f;
      }
#pragma unroll
      for (int n = 0; n < KEYS * STEP_D / THREADS; ++n) {
        const int r = (n * THREADS + t) / STEP_D, d = t % STEP_D;
        const kiln_index j = j0 + r;
        ks[d][r] = j < p.T && d0 + d < P::D ? kiln_widen(k[j * p.KT + d0 + d]) : 0.0f;
      }
      __syncthreads();
#pragma unroll 8
      for (int d = 0; d < STEP_D; ++d) {
        float x[TM], y[TN];
#pragma unroll
        for (int m = 0; m < TM; ++m) x[m] = qs[d][ty * TM + m];
#pragma unroll
        for (int n = 0; n < TN; ++n) y[n] = ks[d][tx + n * 16];
#pragma unroll
        for (int m = 0; m < TM; ++m)
#pragma unroll
          for (int n = 0; n < TN; ++n) s[m][n] = fmaf(x[m], y[n], s[m][n]);
      }
    }
#pragma unroll
    for (int m = 0; m < TM; ++m) {
      const kiln_index i = at.i0 + ty * TM + m;
      float now = most[m];
#pragma unroll
      for (int n = 0; n < TN; ++n) {
        const kiln_index j = j0 + tx + n * 16;
        if (i >= p.S || j >= p.T || (P::CAUSAL && j > i)) s[m][n] = KILN_ATT_NOTHING;
        else s[m][n] = Scores::of(score, at, i, j, s[m][n]);
        now = fmaxf(now, s[m][n]);
      }
#pragma unroll
      for (int mask = 8; mask > 0; mask >>= 1) now = fmaxf(now, kiln_shuffle(now, mask));
      const float kept = kiln_att_rescale(most[m], now, FACTOR);
      const float base = now == KILN_ATT_NOTHING ? 0.0f : now;
      most[m] = now;
      sum[m] *= kept;
#pragma unroll
      for (int n = 0; n < TN; ++n) {
        // The full exponential: the f32 result is held to f32's precision.
        const float x = s[m][n] == KILN_ATT_NOTHING ? 0.0f : exp2f((s[m][n] - base) * FACTOR);
        sum[m] += x;
        ps[ty * TM + m][tx + n * 16] = x;
      }
#pragma unroll
      for (int e = 0; e < TE; ++e) out[m][e] *= kept;
    }
    for (int step = 0; step < KEYS; step += STEP_J) {
      __syncthreads();
#pragma unroll
      for (int n = 0; n < (STEP_J * WIDTH + THREADS - 1) / THREADS; ++n) {
        const int r = (n * THREADS + t) / WIDTH, e = (n * THREADS + t) % WIDTH;
        if (STEP_J * WIDTH % THREADS != 0 && r >= STEP_J) break;
        const kiln_index j = j0 + step + r;
        vs[r][e] = j < p.T && e0 + e < P::E ? kiln_widen(v[j * p.VT + e0 + e]) : 0.0f;
      }
      __syncthreads();
#pragma unroll
      for (int j = 0; j < STEP_J; ++j) {
        float y[TE];
#pragma unroll
        for (int e = 0; e < TE; ++e) y[e] = vs[j][tx * V + e / V * 16 * V + e % V];
#pragma unroll
        for (int m = 0; m < TM; ++m) {
          const float x = ps[ty * TM + m][step + j];
#pragma unroll
          for (int e = 0; e < TE; ++e) out[m][e] = fmaf(x, y[e], out[m][e]);
        }
      }
    }
  }
#pragma unroll
  for (int m = 0; m < TM; ++m) {
    const kiln_index i = at.i0 + ty * TM + m;
#pragma unroll
    for (int mask = 8; mask > 0; mask >>= 1) sum[m] += kiln_shuffle(sum[m], mask);
    const float inverse = Scores::inverse(p, sum[m]);
#pragma unroll
    for (int n = 0; n < TE; n += V) {
      float x[V];
#pragma unroll
      for (int e = 0; e < V; ++e) x[e] = out[m][n + e] * inverse;
      const int e = e0 + tx * V + n * 16;
      if (i < p.S && e < P::E) write.template row<V>(at.b, at.h, i, e, x);
    }
  }
}
