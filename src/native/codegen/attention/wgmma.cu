// On Hopper's tensor cores (sm_90a), 16-bit elements, D and E of 64 or 128. One
// warpgroup copies, two compute 64 rows each: they multiply the next keys while
// they take the softmax of the last. Tiles lie in shared memory as panels of 64
// columns, rows of 128 bytes whose 16-byte chunks are exchanged by the row.

#ifndef KILN_EMULATED
#define KILN_ATT_4(c, i) "+f"(c[i]), "+f"(c[i + 1]), "+f"(c[i + 2]), "+f"(c[i + 3])
#define KILN_ATT_16(c, i) KILN_ATT_4(c, i), KILN_ATT_4(c, i + 4), KILN_ATT_4(c, i + 8), KILN_ATT_4(c, i + 12)
#define KILN_ATT_32(c) KILN_ATT_16(c, 0), KILN_ATT_16(c, 16)
#define KILN_ATT_64(c) KILN_ATT_32(c), KILN_ATT_16(c, 32), KILN_ATT_16(c, 48)
#define KILN_ATT_SHARED_64(TYPE, c, a, b, more) \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\n" \
      "wgmma.mma_async.sync.aligned.m64n64k16.f32." TYPE "." TYPE " {" \
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, " \
      "%18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31 " \
      "}, %32, %33, p, 1, 1, 0, 0;\n}\n" \
      : KILN_ATT_32(c) : "l"(a), "l"(b), "r"(more))
#define KILN_ATT_HELD_64(TYPE, c, a, b, more) \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %37, 0;\n" \
      "wgmma.mma_async.sync.aligned.m64n64k16.f32." TYPE "." TYPE " {" \
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, " \
      "%18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31 " \
      "}, {%32, %33, %34, %35}, %36, p, 1, 1, 1;\n}\n" \
      : KILN_ATT_32(c) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(more))
#define KILN_ATT_SHARED_128(TYPE, c, a, b, more) \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n" \
      "wgmma.mma_async.sync.aligned.m64n128k16.f32." TYPE "." TYPE " {" \
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, " \
      "%18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, " \
      "%34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, " \
      "%50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63 " \
      "}, %64, %65, p, 1, 1, 0, 0;\n}\n" \
      : KILN_ATT_64(c) : "l"(a), "l"(b), "r"(more))
#define KILN_ATT_HELD_128(TYPE, c, a, b, more) \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %69, 0;\n" \
      "wgmma.mma_async.sync.aligned.m64n128k16.f32." TYPE "." TYPE " {" \
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, " \
      "%18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, " \
      "%34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, " \
      "%50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63 " \
      "}, {%64, %65, %66, %67}, %68, p, 1, 1, 1;\n}\n" \
      : KILN_ATT_64(c) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(more))


// c += a b for 64 rows, sixteen deep; without `more`, c = a b. Both in shared memory, rows along the depth.
template <int N>
__device__ __forceinline__ void kiln_att_shared_product(float (&c)[N / 2], unsigned long long a,
                                                        unsigned long long b, int more, kiln_bf16) {
  if constexpr (N == 64) KILN_ATT_SHARED_64("bf16", c, a, b, more);
  else KILN_ATT_SHARED_128("bf16", c, a, b, more);
}
template <int N>
__device__ __forceinline__ void kiln_att_shared_product(float (&c)[N / 2], unsigned long long a,
                                                        unsigned long long b, int more, kiln_f16) {
  if constexpr (N == 64) KILN_ATT_SHARED_64("f16", c, a, b, more);
  else KILN_ATT_SHARED_128("f16", c, a, b, more);
}
// The same with a in registers and the rows of b across the depth.
template <int N>
__device__ __forceinline__ void kiln_att_held_product(float (&c)[N / 2], const unsigned (&a)[4],
                                                      unsigned long long b, kiln_bf16) {
  if constexpr (N == 64) KILN_ATT_HELD_64("bf16", c, a, b, 1);
  else KILN_ATT_HELD_128("bf16", c, a, b, 1);
}
template <int N>
__device__ __forceinline__ void kiln_att_held_product(float (&c)[N / 2], const unsigned (&a)[4],
                                                      unsigned long long b, kiln_f16) {
  if constexpr (N == 64) KILN_ATT_HELD_64("f16", c, a, b, 1);
  else KILN_ATT_HELD_128("f16", c, a, b, 1);
}
// What follows reads the registers only now.
template <int N> __device__ __forceinline__ void kiln_att_settle(float (&c)[N]) {
#pragma unroll
  for (int i = 0; i < N; ++i) asm volatile("" : "+f"(c[i])::"memory");
}

// Copies that this thread knows of reach the tensor cores.
__device__ __forceinline__ void kiln_att_publish() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
__device__ __forceinline__ void kiln_att_take_turn(int id) { asm volatile("bar.sync %0, 256;" ::"r"(id) : "memory"); }
__device__ __forceinline__ void kiln_att_give_turn(int id) { asm volatile("bar.arrive %0, 256;" ::"r"(id) : "memory"); }
template <int COUNT> __device__ __forceinline__ void kiln_att_more_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(COUNT));
}
template <int COUNT> __device__ __forceinline__ void kiln_att_fewer_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(COUNT));
}
#endif

// COUNT rows of WIDTH elements, by 128 threads.
template <int COUNT, int WIDTH, class T>
__device__ __forceinline__ void kiln_att_panel_copy(unsigned char* to, const T* from, kiln_index stride,
                                                    kiln_index first, kiln_index rows) {
  constexpr int CHUNKS = WIDTH / 8, STEP = 128 / CHUNKS;
  const int t = threadIdx.x % 128, r = t / CHUNKS, c = t % CHUNKS;
  unsigned char* at = to + c / 8 * COUNT * 128 + r * 128 + (c % 8 ^ r % 8) * 16;
  const T* source = from + (first + r) * stride + c * 8;
  // Few registers: pointers advance.
  if (first + COUNT <= rows) {
#pragma unroll 4
    for (int n = 0; n < COUNT / STEP; ++n, at += STEP * 128, source += STEP * stride) kiln_copy(at, source, 16);
  } else {
    int left = (int)(rows - first) - r;
#pragma unroll 2
    for (int n = 0; n < COUNT / STEP; ++n, at += STEP * 128, source += STEP * stride, left -= STEP)
      kiln_copy(at, left > 0 ? source : from, left > 0 ? 16 : 0);
  }
}

// The n-th tile of a block. Where later rows see more keys and blocks take turns,
// a long tile and a short one make a pair, so that all pairs take equally long.
struct kiln_att_walk {
  unsigned tiles, each, items;
  bool pairs;
  template <class P> __device__ __forceinline__ kiln_att_walk(const P& p) {
    tiles = (unsigned)((p.S + 127) / 128);
    pairs = P::CAUSAL && tiles * (unsigned)(p.B * p.H) > gridDim.x;
    each = pairs ? (tiles + 1) / 2 : tiles;
    items = each * (unsigned)(p.B * p.H);
  }
  // False after the last; `place.i0` is negative where a pair has no second.
  template <class P> __device__ __forceinline__ bool at(const P& p, unsigned n, kiln_att_place& place) const {
    const unsigned item = blockIdx.x + (pairs ? n / 2 : n) * gridDim.x, x = item % each, head = item / each;
    if (item >= items) return false;
    const bool second = pairs && n % 2 == 1;
    const unsigned tile = P::CAUSAL && !second ? tiles - 1 - x : x, heads = (unsigned)p.H;
    place = {(kiln_index)(head / heads), (kiln_index)(head % heads),
             second && tiles - 1 - x == x ? -1 : (kiln_index)tile * 128};
    return true;
  }
};

template <class P, int KEYS, int STAGES, bool TURNS, class T, class Score, class Write>
__device__ __forceinline__ void kiln_attention_wgmma(const T* q, const T* k, const T* v, const P& p,
                                                     const Score& score, const Write& write) {
  constexpr int ROWS = 128, D = P::D, E = P::E, NS = KEYS / 8, NE = E / 8;
  constexpr int Q_BYTES = ROWS * D * 2, K_BYTES = KEYS * D * 2, V_BYTES = KEYS * E * 2;
  static_assert((D == 64 || D == 128) && (E == 64 || E == 128) && (KEYS == 64 || KEYS == 128), "");
  using Scores = kiln_att_scores<P, Score>;
  constexpr float FACTOR = Scores::factor();
  unsigned char* qs = kiln_shared_memory();
  unsigned char* ks = qs + Q_BYTES;
  unsigned char* vs = ks + STAGES * K_BYTES;
  const unsigned q_full = kiln_shared_address(vs + STAGES * V_BYTES), q_empty = q_full + 8;
  const unsigned k_full = q_full + 16, k_empty = k_full + STAGES * 8;
  const unsigned v_full = k_empty + STAGES * 8, v_empty = v_full + STAGES * 8;
  if (threadIdx.x == 0) {
    kiln_barrier_init(q_full, 128);
    kiln_barrier_init(q_empty, 8);
#pragma unroll
    for (int s = 0; s < STAGES; ++s) {
      kiln_barrier_init(k_full + s * 8, 128);
      kiln_barrier_init(v_full + s * 8, 128);
      kiln_barrier_init(k_empty + s * 8, 8);
      kiln_barrier_init(v_empty + s * 8, 8);
    }
  }
  __syncthreads();
  const kiln_att_walk walk(p);
  kiln_att_place at;
  // Tiles of keys for one of rows.
  auto count = [&](const kiln_att_place& at) {
    const kiln_index seen = P::CAUSAL && at.i0 + ROWS < p.T ? at.i0 + ROWS : p.T;
    return (int)((seen + KEYS - 1) / KEYS);
  };

  if (threadIdx.x < 128) {
    kiln_att_fewer_registers<40>();
    unsigned step = 0;
    for (unsigned n = 0, done = 0; walk.at(p, n, at); ++n) {
      if (at.i0 < 0) continue;
      const T* kh = k + at.b * p.KB + at.h / P::GROUP * p.KG;
      const T* vh = v + at.b * p.VB + at.h / P::GROUP * p.VG;
      kiln_barrier_wait(q_empty, (done++ & 1) ^ 1);
      kiln_att_panel_copy<ROWS, D>(qs, q + at.b * p.QB + at.h * p.QH, p.QS, at.i0, p.S);
      kiln_barrier_copied(q_full);
      for (int tile = count(at) - 1; tile >= 0; --tile, ++step) {
        const unsigned s = step % STAGES, parity = (step / STAGES & 1) ^ 1;
        kiln_barrier_wait(k_empty + s * 8, parity);
        kiln_att_panel_copy<KEYS, D>(ks + s * K_BYTES, kh, p.KT, (kiln_index)tile * KEYS, p.T);
        kiln_barrier_copied(k_full + s * 8);
        kiln_barrier_wait(v_empty + s * 8, parity);
        kiln_att_panel_copy<KEYS, E>(vs + s * V_BYTES, vh, p.VT, (kiln_index)tile * KEYS, p.T);
        kiln_barrier_copied(v_full + s * 8);
      }
    }
    kiln_copy_wait<0>();
  } else {
    kiln_att_more_registers<232>();
    const int mine = threadIdx.x / 128 - 1, lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4;
    const int group = lane / 4, pair = lane % 4 * 2;
    const unsigned q_at = kiln_shared_address(qs) + mine * 64 * 128, k_at = kiln_shared_address(ks),
                   v_at = kiln_shared_address(vs);
    auto open = [&](unsigned gate) {
      __syncwarp();
      if (lane == 0) kiln_barrier_arrive(gate);
    };
    float s[NS * 4], out[NE * 4];
    unsigned a[KEYS / 16][4];
    float most[2], sum[2], kept[2];
    auto multiply_k = [&](unsigned stage) {
#pragma unroll
      for (int d = 0; d < D / 16; ++d)
        kiln_att_shared_product<KEYS>(
            s, kiln_matrix(q_at + d / 4 * ROWS * 128 + d % 4 * 32, 16),
            kiln_matrix(k_at + stage * K_BYTES + d / 4 * KEYS * 128 + d % 4 * 32, 16), d > 0, T{});
    };
    auto multiply_v = [&](unsigned stage) {
#pragma unroll
      for (int j = 0; j < KEYS / 16; ++j)
        kiln_att_held_product<E>(out, a[j], kiln_matrix(v_at + stage * V_BYTES + j * 2048, KEYS * 128), T{});
    };
    // Scores to weights; `kept` is what stays of earlier sums.
    auto soften = [&](int tile, bool edge) {
      if (edge || !Scores::RAW) {
        const kiln_index i0 = at.i0 + mine * 64 + warp * 16 + group;
#pragma unroll
        for (int r = 0; r < 2; ++r)
          Scores::template see<NS>(p, score, at, i0 + r * 8, (kiln_index)tile * KEYS + pair, edge, r, s);
      }
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        float now = most[r];
#pragma unroll
        for (int n = 0; n < NS; ++n) now = fmaxf(now, fmaxf(s[n * 4 + 2 * r], s[n * 4 + 2 * r + 1]));
        now = fmaxf(now, kiln_shuffle(now, 1));
        now = fmaxf(now, kiln_shuffle(now, 2));
        kept[r] = kiln_att_rescale(most[r], now, FACTOR);
        const float base = Scores::base(now);
        most[r] = now;
        sum[r] *= kept[r];
#pragma unroll
        for (int n = 0; n < NS; ++n)
#pragma unroll
          for (int c = n * 4 + 2 * r; c < n * 4 + 2 * r + 2; ++c) {
            s[c] = Scores::power(s[c], base);
            sum[r] += s[c];
          }
      }
    };
    auto narrow = [&]() {
#pragma unroll
      for (int j = 0; j < KEYS / 16; ++j)
#pragma unroll
        for (int c = 0; c < 4; ++c) a[j][c] = kiln_pair(s[j * 8 + c * 2], s[j * 8 + c * 2 + 1], T{});
    };
    if (TURNS && mine == 1) kiln_att_give_turn(1);
    unsigned step = 0;
    for (unsigned n = 0, done = 0; walk.at(p, n, at); ++n) {
      if (at.i0 < 0) continue;
      const int tiles = count(at);
#pragma unroll
      for (int i = 0; i < NE * 4; ++i) out[i] = 0.0f;
      most[0] = most[1] = KILN_ATT_NOTHING;
      sum[0] = sum[1] = 0.0f;
      kiln_barrier_wait(q_full, done++ & 1);
      if (tiles > 0) {
        kiln_barrier_wait(k_full + step % STAGES * 8, step / STAGES & 1);
        kiln_att_publish();
        if (TURNS) kiln_att_take_turn(1 + mine);
        kiln_group_begin();
        multiply_k(step % STAGES);
        kiln_group_end();
        if (TURNS) kiln_att_give_turn(2 - mine);
        kiln_group_wait<0>();
        kiln_att_settle(s);
        open(k_empty + step % STAGES * 8);
        soften(tiles - 1, true);
        narrow();
        for (int tile = tiles - 2; tile >= 0; --tile, ++step) {
          const unsigned next = step + 1;
          kiln_barrier_wait(v_full + step % STAGES * 8, step / STAGES & 1);
          kiln_barrier_wait(k_full + next % STAGES * 8, next / STAGES & 1);
          kiln_att_publish();
          if (TURNS) kiln_att_take_turn(1 + mine);
          kiln_group_begin();
          multiply_k(next % STAGES);
          kiln_group_end();
          multiply_v(step % STAGES);
          kiln_group_end();
          if (TURNS) kiln_att_give_turn(2 - mine);
          kiln_group_wait<1>();
          kiln_att_settle(s);
          open(k_empty + next % STAGES * 8);
          soften(tile, P::CAUSAL && KEYS < ROWS && (kiln_index)(tile + 1) * KEYS > at.i0 + mine * 64);
          kiln_group_wait<0>();
          kiln_att_settle(out);
          open(v_empty + step % STAGES * 8);
#pragma unroll
          for (int i = 0; i < NE * 4; ++i) out[i] *= kept[i / 2 % 2];
          narrow();
        }
      }
      open(q_empty);
      if (tiles > 0) {
        kiln_barrier_wait(v_full + step % STAGES * 8, step / STAGES & 1);
        kiln_att_publish();
        kiln_group_begin();
        multiply_v(step % STAGES);
        kiln_group_end();
        kiln_group_wait<0>();
        kiln_att_settle(out);
        open(v_empty + step % STAGES * 8);
        ++step;
      }
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        sum[r] += kiln_shuffle(sum[r], 1);
        sum[r] += kiln_shuffle(sum[r], 2);
        const float inverse = Scores::inverse(p, sum[r]);
#pragma unroll
        for (int g = 0; g < NE / 4; ++g) {
          float x[4][2];
#pragma unroll
          for (int m = 0; m < 4; ++m)
#pragma unroll
            for (int c = 0; c < 2; ++c) x[m][c] = out[(g * 4 + m) * 4 + r * 2 + c] * inverse;
          kiln_att_write32(p, write, at, at.i0 + mine * 64 + warp * 16 + group + r * 8, g * 32, x);
        }
      }
    }
  }
}
