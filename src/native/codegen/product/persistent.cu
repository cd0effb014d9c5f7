// Products by `wgmma` (sm_90a alone; of the types of `wgmma.cu`) of more tiles than a device has
// multiprocessors: a block computes one tile after another, and while the sums of one are
// written from the registers, the operands of the next are on their way.
//
//   kiln_pipe pipe;
//   kiln_pipe_begin<GROUPS, STAGES>();
//   for (block = blockIdx.x; block < blocks; block += gridDim.x)
//     kiln_product_persistent<P, T, GROUPS, TILE_N, STAGES>(a, b, p, write, pipe, block, also)
//
// Tiles, threads and tensor maps are those of `wgmma.cu`. Several problems may share the
// loop, each with its range of `block`. Of a P::TWIN each tile is two of half the columns, of b
// and of `also`, which lies as b does: boxes of TILE_N / 2 columns, and `write.row(z, m, n, x, y)`
// takes the sums of both. P::WIDE; P::ROWS_WHOLE and P::COLUMNS_WHOLE say that no tile is cut off.
// `write.early<8>(z, m, n)` reads what a pack needs beside its sums, and gives what takes those. Dynamic shared memory: 1024 + STAGES * (64 * GROUPS + TILE_N) * 128 bytes.
//
// Invariant: whoever fetches and whoever multiplies count the same stages, over all tiles.

struct kiln_pipe {
  int stage = 0, turn = 0;
  bool begun = false;
  template <int STAGES> __device__ __forceinline__ void next() {
    if (++stage == STAGES) {
      stage = 0;
      turn ^= 1;
    }
  }
};

// Whoever fetches may do so at once, and whoever multiplies once there are barriers to wait at.
template <int GROUPS, int STAGES> __device__ __forceinline__ void kiln_pipe_begin() {
  const unsigned full = kiln_shared_address(kiln_shared_memory()), empty = full + STAGES * 8;
  constexpr int ALL = GROUPS * 128 + 32;
  if (threadIdx.x < GROUPS * 128) {
    asm volatile("bar.sync 1, %0;" ::"n"(ALL) : "memory");
    return;
  }
  if (threadIdx.x == GROUPS * 128) {
    kiln_ring_begin<STAGES>(full, empty, GROUPS);
  }
  __syncwarp();
  asm volatile("bar.arrive 1, %0;" ::"n"(ALL) : "memory");
}

// Four threads have two neighbours of each of four packs of eight: now each has a whole pack.
__device__ __forceinline__ void kiln_whole_packs(float (&x)[8]) {
  const bool odd = threadIdx.x & 1, high = threadIdx.x & 2;
  auto exchange = [](bool upper, float& low, float& up, int lanes) {
    // Numbers, not places: a choice between those would put the packs into local memory.
    const float a = low, b = up, got = __shfl_xor_sync(0xffffffffu, upper ? a : b, lanes);
    low = upper ? got : a;
    up = upper ? b : got;
  };
#pragma unroll
  for (int i = 0; i < 8; i += 4) {
    exchange(odd, x[i], x[i + 2], 1);
    exchange(odd, x[i + 1], x[i + 3], 1);
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) exchange(high, x[i], x[i + 4], 2);
}

// The pack that begins with the sum `from` of this thread.
template <int SUMS>
__device__ __forceinline__ void kiln_pack_of(float (&x)[8], const float (&acc)[SUMS], int from) {
#pragma unroll
  for (int j = 0; j < 8; ++j) x[j] = acc[from + j / 2 * 4 + j % 2];
  kiln_whole_packs(x);
}

// Hands it to `then`, with that of the other of twins.
template <bool TWIN, int SUMS, class Then>
__device__ __forceinline__ void kiln_finish_pack(const float (&acc)[SUMS], int from,
                                                 const Then& then) {
  float x[8];
  kiln_pack_of(x, acc, from);
  if constexpr (TWIN) {
    float y[8];
    kiln_pack_of(y, acc, SUMS / 2 + from);
    then(x, y);
  } else {
    then(x);
  }
}

template <class P, class T, int GROUPS, int TILE_N, int STAGES, class Write>
__device__ __forceinline__ void kiln_product_persistent(const kiln_tensor_map& a,
                                                        const kiln_tensor_map& b, const P& p,
                                                        const Write& write, kiln_pipe& pipe,
                                                        unsigned block,
                                                        const kiln_tensor_map& also) {
  constexpr int TILE_M = GROUPS * 64, THREADS = GROUPS * 128;
  constexpr int STEP = 128 / (int)sizeof(T);
  constexpr int COLUMNS = P::TWIN ? TILE_N / 2 : TILE_N;
  constexpr int BYTES_A = TILE_M * 128, BYTES_B = TILE_N * 128;
  // Rows of a tile that there are, where that is known: nothing is read of the others.
  constexpr int BOXED_A = P::A_ALONG_K ? P::A_BOX * 128 : BYTES_A;
  static_assert(COLUMNS % (P::B_ALONG_K ? 32 : 64) == 0, "");
  const unsigned full = kiln_shared_address(kiln_shared_memory()), empty = full + STAGES * 8;
  const unsigned as = full + 1024, bs = as + STAGES * BYTES_A;
  // Where groups end, a kernel before this one may have said.
  if (P::GROUPED && !pipe.begun) kiln_wait();
  const kiln_place at = kiln_tile<TILE_M, COLUMNS, 1>(p, block);
  if (P::GROUPED && at.m >= at.rows) return;
  const int steps = (int)((kiln_depth(p, at) + STEP - 1) / STEP), group = threadIdx.x / 128;
  if (group == GROUPS) {
    if (threadIdx.x != THREADS) return;
    auto fetch_a = [&](int step, int stage) {
      const unsigned barrier = full + stage * 8, to_a = as + stage * BYTES_A;
      if (P::A_ALONG_K) {
        kiln_copy_box(to_a, a, step * STEP, (int)at.m, barrier);
      } else {
#pragma unroll
        for (int i = 0; i < GROUPS; ++i)
          kiln_copy_box(to_a + i * 8192, a, (int)at.m + i * 64, step * STEP, barrier);
      }
    };
    // Of the group's matrix.
    int columns = (int)at.n, deep = 0;
    if constexpr (P::GROUPED) {
      const int before = (int)(at.matrix * p.B_ROWS);
      if (P::B_ALONG_K) columns += before;
      else deep = before;
    }
    // Comes first: it says how many bytes the stage gets.
    auto fetch_b = [&](int step, int stage) {
      const unsigned barrier = full + stage * 8, to_b = bs + stage * BYTES_B;
      kiln_barrier_expect(barrier, BOXED_A + BYTES_B);
      if (P::B_ALONG_K) {
        kiln_copy_box(to_b, b, step * STEP, columns, barrier);
        if (P::TWIN) kiln_copy_box(to_b + COLUMNS * 128, also, step * STEP, columns, barrier);
      } else {
#pragma unroll
        for (int i = 0; i < TILE_N / 64; ++i)
          kiln_copy_box(to_b + i * 8192, i * 64 < COLUMNS ? b : also,
                        columns + i * 64 % COLUMNS, deep + step * STEP, barrier);
      }
    };
    int step = 0;
    if (!pipe.begun) {
      pipe.begun = true;
      const int early = steps < STAGES ? steps : STAGES;
      if (!P::B_GIVEN) kiln_wait();
#pragma unroll 1
      for (int i = 0; i < early; ++i) fetch_b(i, i);
      if (P::B_GIVEN) kiln_wait();
#pragma unroll 1
      for (; step < early; ++step, pipe.next<STAGES>()) fetch_a(step, step);
    }
#pragma unroll 1
    for (; step < steps; ++step, pipe.next<STAGES>()) {
      kiln_barrier_wait(empty + pipe.stage * 8, pipe.turn ^ 1);
      fetch_b(step, pipe.stage);
      fetch_a(step, pipe.stage);
    }
    return;
  }
  if (!pipe.begun) {
    pipe.begun = true;
    kiln_wait();
  }
  auto release = [&](int stage) {
    if (threadIdx.x % 128 == 0) kiln_barrier_arrive(empty + stage * 8);
  };
  float acc[TILE_N / 2] = {};
  int before = -1;
#pragma unroll 1
  for (int step = 0; step < steps; ++step, pipe.next<STAGES>()) {
    kiln_barrier_wait(full + pipe.stage * 8, pipe.turn);
    kiln_multiply_step<P, T>(acc, as + pipe.stage * BYTES_A + group * 8192,
                             bs + pipe.stage * BYTES_B);
    // The step before is done: its stage may be filled again.
    kiln_group_wait<1>();
    if (before >= 0) release(before);
    before = pipe.stage;
  }
  kiln_group_wait<0>();
  if (before >= 0) release(before);
  const kiln_index m = at.m + threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4;
  const kiln_index column = at.n + threadIdx.x % 4 * 8;
#pragma unroll
  for (int i = 0; i < COLUMNS / 2; i += 32) {
    const kiln_index n = column + i * 2;
    const bool two = i + 16 < COLUMNS / 2;
    if constexpr (P::ROWS_WHOLE && P::COLUMNS_WHOLE) {
      // What is read for four packs is on its way together.
      const auto first = write.template early<8>(at.z, m, n);
      const auto second = write.template early<8>(at.z, m + 8, n);
      if (two) {
        const auto third = write.template early<8>(at.z, m, n + 32);
        const auto fourth = write.template early<8>(at.z, m + 8, n + 32);
        kiln_finish_pack<P::TWIN>(acc, i, first);
        kiln_finish_pack<P::TWIN>(acc, i + 2, second);
        kiln_finish_pack<P::TWIN>(acc, i + 16, third);
        kiln_finish_pack<P::TWIN>(acc, i + 18, fourth);
      } else {
        kiln_finish_pack<P::TWIN>(acc, i, first);
        kiln_finish_pack<P::TWIN>(acc, i + 2, second);
      }
    } else {
#pragma unroll
      for (int j = 0; j < (two ? 4 : 2); ++j) {
        const int from = i + j / 2 * 16 + j % 2 * 2;
        const kiln_index row = m + j % 2 * 8, first = n + j / 2 * 32;
        float x[8], y[8] = {};
        kiln_pack_of(x, acc, from);
        if (P::TWIN) kiln_pack_of(y, acc, COLUMNS / 2 + from);
        if (row < at.rows && first < p.N) kiln_write_row<P::TWIN>(write, at.z, row, first, x, y);
      }
    }
  }
}
