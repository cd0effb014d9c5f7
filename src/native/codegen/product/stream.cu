// Products of one or two rows with a matrix that lies along K (sm_90 and newer): bulk copies bring
// its rows through a ring in shared memory, as fast as they are read, and begin where they can
// while kernels before this one still run.
//
//   kiln_product_stream<P, ROWS, SPLIT, COLUMNS, DEEP, STAGES>(a, b, p, write, block, also)
//
// M = ROWS; P::ALIGNED, A_ALONG_K and B_ALONG_K; K constant and a multiple of 16 bytes. A block has
// COLUMNS columns, of a P::TWIN of both matrices: 8 warps multiply, SPLIT of them share a column,
// and a ninth fetches. A stage of the ring has DEEP columns. A grid of ceil(N / COLUMNS) x BATCH
// blocks in x. Dynamic shared memory, each of a TWIN twice: 1024 + STAGES * DEEP columns + ROWS *
// COLUMNS * SPLIT sums. Calls row<1> alone. Waits by itself.
//
// Invariant: each of the 8 warps releases each stage once, whether it had a column there or not.

template <class P, int ROWS, int SPLIT, int COLUMNS, int DEEP, int STAGES, class T, class Write>
__device__ __forceinline__ void kiln_product_stream(const T* a, const T* b, const P& p,
                                                    const Write& write, unsigned block,
                                                    const T* also = nullptr) {
  using R = decltype(kiln_widen(T{}));
  using Pack = kiln_pack<T, 16 / sizeof(T)>;
  constexpr int V = 16 / sizeof(T), CHUNKS = (int)P::K / V, OF = P::TWIN ? 2 : 1, WARPS = 8;
  // Chunks of a column that a lane multiplies.
  constexpr int EACH = (CHUNKS + SPLIT * 32 - 1) / (SPLIT * 32), GROUPS = WARPS / SPLIT;
  constexpr int COLUMN = (int)P::K * (int)sizeof(T), STAGE = DEEP * OF * COLUMN;
  const unsigned tiles = (unsigned)((p.N + COLUMNS - 1) / COLUMNS);
  const kiln_index z = block / tiles, n0 = (kiln_index)(block % tiles) * COLUMNS;
  const int columns = p.N - n0 < COLUMNS ? (int)(p.N - n0) : COLUMNS;
  const int steps = (columns + DEEP - 1) / DEEP, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const unsigned full = kiln_shared_address(kiln_shared_memory()), empty = full + STAGES * 8;
  const unsigned char* ring = kiln_shared_memory() + 1024;
  R* sums = reinterpret_cast<R*>(kiln_shared_memory() + 1024 + STAGES * STAGE);
  a += p.A_BATCH(z);
  b += p.B_BATCH(z) + n0 * p.BN;
  if (P::TWIN) also += p.B_BATCH(z) + n0 * p.BN;
  if (threadIdx.x == WARPS * 32) {
    kiln_ring_begin<STAGES>(full, empty, WARPS);
  }
  __syncthreads();
  if (threadIdx.x == WARPS * 32) {
    if (!P::B_GIVEN) kiln_wait();
    int stage = 0, turn = 1;
#pragma unroll 1
    for (int step = 0; step < steps; ++step) {
      // Of a ring that was never full there is nothing to wait for.
      if (step >= STAGES) kiln_barrier_wait(empty + stage * 8, turn);
      const int c0 = step * DEEP, here = columns - c0 < DEEP ? columns - c0 : DEEP;
      const unsigned barrier = full + stage * 8, to = full + 1024 + stage * STAGE;
      kiln_barrier_expect(barrier, here * OF * COLUMN);
#pragma unroll 1
      for (int c = 0; c < here; ++c) {
        kiln_copy_bulk(to + c * OF * COLUMN, b + (c0 + c) * p.BN, COLUMN, barrier);
        if (P::TWIN) {
          kiln_copy_bulk(to + (c * OF + 1) * COLUMN, also + (c0 + c) * p.BN, COLUMN, barrier);
        }
      }
      if (++stage == STAGES) {
        stage = 0;
        turn ^= 1;
      }
    }
  } else if (warp < WARPS) {
    const int part = warp % SPLIT, group = warp / SPLIT;
    auto chunk = [&](int e) { return (e * SPLIT + part) * 32 + lane; };
    kiln_wait();
    Pack x[ROWS][EACH];
#pragma unroll
    for (int r = 0; r < ROWS; ++r)
#pragma unroll
      for (int e = 0; e < EACH; ++e) {
        x[r][e] = chunk(e) < CHUNKS
                      ? *reinterpret_cast<const Pack*>(a + r * p.AM + (kiln_index)chunk(e) * V)
                      : Pack{};
      }
    int stage = 0, turn = 0;
#pragma unroll 1
    for (int step = 0; step < steps; ++step) {
      kiln_barrier_wait(full + stage * 8, turn);
#pragma unroll
      for (int d = 0; d < DEEP; ++d) {
        const int c = step * DEEP + d;
        if (c % GROUPS != group || c >= columns) continue;
#pragma unroll
        for (int of = 0; of < OF; ++of) {
          const unsigned char* column = ring + stage * STAGE + (d * OF + of) * COLUMN;
          R acc[ROWS][2] = {};
#pragma unroll
          for (int e = 0; e < EACH; ++e) {
            if (CHUNKS % (SPLIT * 32) != 0 && chunk(e) >= CHUNKS) break;
            const Pack y = *reinterpret_cast<const Pack*>(column + chunk(e) * 16);
#pragma unroll
            for (int v = 0; v < V; ++v)
#pragma unroll
              for (int r = 0; r < ROWS; ++r) {
                acc[r][v % 2] =
                    kiln_fma(kiln_widen(x[r][e].at[v]), kiln_widen(y.at[v]), acc[r][v % 2]);
              }
          }
#pragma unroll
          for (int r = 0; r < ROWS; ++r) {
            R sum = acc[r][0] + acc[r][1];
#pragma unroll
            for (int mask = 16; mask > 0; mask >>= 1) sum += kiln_shuffle(sum, mask);
            if (lane == 0) sums[((c * OF + of) * ROWS + r) * SPLIT + part] = sum;
          }
        }
      }
      __syncwarp();
      if (lane == 0) kiln_barrier_arrive(empty + stage * 8);
      if (++stage == STAGES) {
        stage = 0;
        turn ^= 1;
      }
    }
  }
  __syncwarp();
  __syncthreads();
  for (int e = threadIdx.x; e < ROWS * columns; e += WARPS * 32 + 32) {
    const int r = e / columns, c = e % columns;
    auto sum = [&](int of) {
      const R* from = sums + ((c * OF + of) * ROWS + r) * SPLIT;
      R sum = from[0];
#pragma unroll
      for (int i = 1; i < SPLIT; ++i) sum += from[i];
      return sum;
    };
    const R x[1] = {sum(0)}, y[1] = {P::TWIN ? sum(OF - 1) : R(0)};
    kiln_write_row<P::TWIN>(write, z, r, n0 + c, x, y);
  }
}
