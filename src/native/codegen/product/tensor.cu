// What the templates of products share: where a block's tile lies, and what is
// done with its sums.
//
// A problem `P` has the members M, N, K, BATCH, AM, AK, BK, BN, each constant or
// not, the functions A_BATCH(z) and B_BATCH(z), and the constants ALIGNED,
// A_ALONG_K, A_ALONG_M, B_ALONG_K, B_ALONG_N (which stride is 1), A_BOX (rows of a tensor map's
// box, where there is one), WIDE and B_GIVEN:
// b is a parameter or a buffer of the program, which templates that say so load before `kiln_wait`.
// `write.template row<V>(z, m, n, x)` takes V sums of a row, V = 8 if WIDE. `block` is
// which of the problem's blocks this one is, for launches of several problems. A P::TWIN
// (of the templates that say so) has a second matrix of columns, and `write.template row<V>(z,
// m, n, x, y)` takes the sums of both.

// A P::GROUPED has rows in groups: GROUPS of them, each with a matrix b of its own, that end at
// end(z), and BATCH = 1. Rows behind the last give zero. A tile has rows of one group alone.

// The tile of a block: batch, first row, first column, which part of K, which of the matrices b,
// and the end of the rows: of no more than `m`, the block has nothing to do.
struct kiln_place {
  kiln_index z, m, n;
  int part;
  kiln_index matrix, rows;
};

// The tile of rows number `tile`, counted through all groups. A warp looks at 32 groups at a
// time, its lanes at one each: all of its threads must come here.
template <int TILE_M, class P>
__device__ __forceinline__ kiln_place kiln_tile_of_group(const P& p, kiln_index tile) {
  const int lane = threadIdx.x % 32;
  kiln_index before = 0;  // Where the group before this lane's 32 ends.
#pragma unroll 1
  for (kiln_index z0 = 0; z0 <= p.GROUPS; z0 += 32) {
    const kiln_index z = z0 + lane;
    // Of lanes up to this one, and of all that exchanged so far.
    kiln_int end = z < p.GROUPS ? (kiln_int)p.end(z) : (kiln_int)p.M, last;
    end = end < before ? before : end < p.M ? end : p.M;
    last = end;
    kiln_int begin = before;
#pragma unroll
    for (int mask = 1; mask < 32; mask <<= 1) {
      const kiln_int other = kiln_shuffle(last, mask);
      if (lane & mask && other > begin) begin = other;
      if (other > last) last = other;
    }
    if (end < begin) end = begin;
    const kiln_int tiles = (end - begin + TILE_M - 1) / TILE_M;
    kiln_int sum = tiles, first = 0;
#pragma unroll
    for (int mask = 1; mask < 32; mask <<= 1) {
      const kiln_int other = kiln_shuffle(sum, mask);
      if (lane & mask) first += other;
      sum += other;
    }
    if (tile < sum) {
      // One lane has it, and tells the others.
      const bool mine = tile >= first && tile < first + tiles;
      kiln_int told[3] = {begin + (tile - first) * TILE_M, z, end};
#pragma unroll
      for (int i = 0; i < 3; ++i) {
        if (!mine) told[i] = 0;
#pragma unroll
        for (int mask = 1; mask < 32; mask <<= 1) told[i] |= kiln_shuffle(told[i], mask);
      }
      return {0, (kiln_index)told[0], 0, 0, (kiln_index)told[1], (kiln_index)told[2]};
    }
    tile -= (kiln_index)sum;
    before = (kiln_index)last;
  }
  return {0, p.M, 0, 0, 0, 0};
}

// What a tile sums over: nothing behind the last group.
template <class P>
__device__ __forceinline__ kiln_index kiln_depth(const P& p, const kiln_place& at) {
  if constexpr (P::GROUPED) {
    if (at.matrix >= p.GROUPS) return 0;
  }
  return p.K;
}

// Eight rows of tiles at a time, column by column: what neighbours read meets in the L2 cache.
template <int TILE_M, int TILE_N, int SPLIT, class P>
__device__ __forceinline__ kiln_place kiln_tile(const P& p, unsigned index) {
  const unsigned tiles_m = (unsigned)((p.M + TILE_M - 1) / TILE_M);
  const unsigned tiles_n = (unsigned)((p.N + TILE_N - 1) / TILE_N);
  if constexpr (P::GROUPED) {
    // Column by column, as a group's matrix is read by all its tiles.
    kiln_place at = kiln_tile_of_group<TILE_M>(p, index / SPLIT / tiles_n);
    at.n = (kiln_index)(index / SPLIT % tiles_n) * TILE_N;
    at.part = (int)(index % SPLIT);
    return at;
  }
  const unsigned block = index / SPLIT, z = block / (tiles_m * tiles_n);
  const unsigned band = 8 * tiles_n, rest = block % (tiles_m * tiles_n), first = rest / band * 8;
  const unsigned height = tiles_m - first < 8 ? tiles_m - first : 8;
  const unsigned m = first + rest % band % height, n = rest % band / height;
  return {(kiln_index)z, (kiln_index)m * TILE_M, (kiln_index)n * TILE_N, (int)(index % SPLIT),
          (kiln_index)z, p.M};
}

template <bool TWIN, class Write, class R, int V>
__device__ __forceinline__ void kiln_write_row(const Write& write, kiln_index z, kiln_index m,
                                               kiln_index n, const R (&x)[V], const R (&y)[V]) {
  if constexpr (TWIN) write.template row<V>(z, m, n, x, y);
  else write.template row<V>(z, m, n, x);
}

// Hands a tile of sums in shared memory, `PITCH` floats a row, to `write`: rows FIRST and on.
// With SPLIT > 1 each of a cluster's blocks holds a part of each sum, and finishes some rows.
template <int TILE_M, int TILE_N, int PITCH, int THREADS, int SPLIT, class P, class Write>
__device__ __forceinline__ void kiln_finish(const float* sums, const P& p, const kiln_place& at,
                                            const Write& write) {
  constexpr int V = P::WIDE ? 8 : 4, ROWS = TILE_M / SPLIT, PACKS = ROWS * TILE_N / V;
  static_assert(ROWS * SPLIT == TILE_M, "");
#pragma unroll 2
  for (int e = threadIdx.x; e < PACKS; e += THREADS) {
    const int r = at.part * ROWS + e / (TILE_N / V), c = e % (TILE_N / V) * V;
    const kiln_index m = at.m + r, n = at.n + c;
    if (m >= at.rows || n >= p.N) continue;
    float x[V] = {};
#pragma unroll
    for (int part = 0; part < SPLIT; ++part)
#pragma unroll
      for (int v = 0; v < V; v += 4) {
        // Neighbours take their halves in different orders: from different banks.
        const int w = V == 8 ? v ^ e % 8 / 4 * 4 : v;
        const float* from = sums + r * PITCH + c + w;
        float y[4];
        if (SPLIT > 1) kiln_cluster_read(y, from, part);
        else kiln_load(reinterpret_cast<const kiln_f32*>(from), y);
#pragma unroll
        for (int i = 0; i < 4; ++i) x[v + i] = part == 0 ? y[i] : x[v + i] + y[i];
      }
    if constexpr (P::WIDE) {
      const bool swapped = e % 8 >= 4;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float low = swapped ? x[i + 4] : x[i];
        x[i + 4] = swapped ? x[i] : x[i + 4];
        x[i] = low;
      }
      write.template row<8>(at.z, m, n, x);
    } else {
#pragma unroll
      for (int v = 0; v < V; ++v) {
        const float one[1] = {x[v]};
        if (n + v < p.N) write.template row<1>(at.z, m, n + v, one);
      }
    }
  }
  if (SPLIT > 1) kiln_cluster_sync();  // No block leaves while another reads from it.
}
