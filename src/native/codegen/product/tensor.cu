// What the templates of products share: where a block's tile lies, dynamic
// shared memory, asynchronous copies, fragments of the tensor cores. The CPU
// emulator of the tests defines by itself what is guarded here.
//
// A problem `P` has the members M, N, K, BATCH, AM, AK, BK, BN, each constant or
// not, the functions A_BATCH(z) and B_BATCH(z), and the constants ALIGNED,
// A_ALONG_K, A_ALONG_M, B_ALONG_K, B_ALONG_N (which stride is 1) and WIDE.
// `write.template row<V>(z, m, n, x)` takes V sums of a row, V = 8 if WIDE. `block` is
// which of the problem's blocks this one is, for launches of several problems.

#ifndef KILN_EMULATED
extern __shared__ __align__(1024) unsigned char kiln_dynamic[];
__device__ __forceinline__ unsigned char* kiln_shared_memory() { return kiln_dynamic; }
__device__ __forceinline__ unsigned kiln_shared_address(const void* p) {
  return (unsigned)__cvta_generic_to_shared(p);
}

// Copies 16 bytes, the last ones as zeros where `bytes` is less.
__device__ __forceinline__ void kiln_copy(void* to, const void* from, int bytes) {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(kiln_shared_address(to)),
               "l"(from), "r"(bytes)
               : "memory");
#endif
}
__device__ __forceinline__ void kiln_copy_commit() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
// Until all but the last `LEFT` groups of this thread's copies are there.
template <int LEFT> __device__ __forceinline__ void kiln_copy_wait() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory");
#endif
}

// Four matrices of 8 x 8: lane l gives the address of row l % 8 of matrix l / 8.
template <bool TRANSPOSED>
__device__ __forceinline__ void kiln_ldmatrix(unsigned (&x)[4], const void* row) {
#if __CUDA_ARCH__ >= 750
  if (TRANSPOSED) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
                 : "r"(kiln_shared_address(row)) : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
                 : "r"(kiln_shared_address(row)) : "memory");
  }
#endif
}

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

// All threads of a cluster's blocks meet; what they wrote to shared memory is seen.
__device__ __forceinline__ void kiln_cluster_sync() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" :::
               "memory");
#endif
}
// The four numbers at `p` in the shared memory of the cluster's block `rank`.
__device__ __forceinline__ void kiln_cluster_read(float (&x)[4], const float* p, int rank) {
#if __CUDA_ARCH__ >= 900
  unsigned at;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(at) : "r"(kiln_shared_address(p)), "r"(rank));
  asm volatile("ld.shared::cluster.v4.f32 {%0,%1,%2,%3}, [%4];"
               : "=f"(x[0]), "=f"(x[1]), "=f"(x[2]), "=f"(x[3]) : "r"(at) : "memory");
#endif
}
#endif

// The tile of a block: batch, first row, first column, and which part of K.
struct kiln_place {
  kiln_index z, m, n;
  int part;
};

// Eight rows of tiles at a time, column by column: what neighbours read meets in the L2 cache.
template <int TILE_M, int TILE_N, int SPLIT, class P>
__device__ __forceinline__ kiln_place kiln_tile(const P& p, unsigned index) {
  const unsigned tiles_m = (unsigned)((p.M + TILE_M - 1) / TILE_M);
  const unsigned tiles_n = (unsigned)((p.N + TILE_N - 1) / TILE_N);
  const unsigned block = index / SPLIT, z = block / (tiles_m * tiles_n);
  const unsigned band = 8 * tiles_n, rest = block % (tiles_m * tiles_n), first = rest / band * 8;
  const unsigned height = tiles_m - first < 8 ? tiles_m - first : 8;
  const unsigned m = first + rest % band % height, n = rest % band / height;
  return {(kiln_index)z, (kiln_index)m * TILE_M, (kiln_index)n * TILE_N, (int)(index % SPLIT)};
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
    if (m >= p.M || n >= p.N) continue;
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
