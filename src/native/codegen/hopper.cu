// What the kernels share that take Hopper's instructions: barriers in shared memory, by their
// addresses there, copies in bulk (sm_90 and newer), and groups of `wgmma` (sm_90a alone).

#ifndef KILN_EMULATED
__device__ __forceinline__ void kiln_barrier_init(unsigned barrier, int count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(count) : "memory");
}
// After all of them, by the thread that did it: for copies in the background.
__device__ __forceinline__ void kiln_barriers_begun() {
  asm volatile("fence.mbarrier_init.release.cluster;\nfence.proxy.async;" ::: "memory");
}
// Copies so many bytes, a multiple of 16 as both places are, then reports them to the barrier.
__device__ __forceinline__ void kiln_copy_bulk(unsigned to, const void* from, int bytes,
                                               unsigned barrier) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, "
               "[%3];" ::"r"(to), "l"(from), "r"(bytes), "r"(barrier)
               : "memory");
}
__device__ __forceinline__ void kiln_barrier_arrive(unsigned barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
__device__ __forceinline__ void kiln_barrier_expect(unsigned barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
               : "memory");
}
__device__ __forceinline__ void kiln_barrier_wait(unsigned barrier, int parity) {
  unsigned done = 0;
  while (!done) {
    asm volatile("{\n.reg .pred p;\nmbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
                 "selp.u32 %0, 1, 0, p;\n}"
                 : "=r"(done) : "r"(barrier), "r"(parity) : "memory");
  }
}
// Arrives once the copies of this thread have.
__device__ __forceinline__ void kiln_barrier_copied(unsigned barrier) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(barrier) : "memory");
}
__device__ __forceinline__ void kiln_group_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void kiln_group_end() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int N> __device__ __forceinline__ void kiln_group_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}
#endif

// Barriers for a ring of STAGES: one fetches, so many release. By one thread.
template <int STAGES>
__device__ __forceinline__ void kiln_ring_begin(unsigned full, unsigned empty, int releases) {
#pragma unroll
  for (int i = 0; i < STAGES; ++i) {
    kiln_barrier_init(full + i * 8, 1);
    kiln_barrier_init(empty + i * 8, releases);
  }
  kiln_barriers_begun();
}

// Where a matrix lies in shared memory, swizzled by 128 bytes; `leading` bytes between
// groups of 64 across (where it does not lie along K), 1024 between groups of eight.
__device__ __forceinline__ unsigned long long kiln_matrix(unsigned address, unsigned leading) {
  return (unsigned long long)((address & 0x3ffff) >> 4) |
         (unsigned long long)(leading >> 4) << 16 | (unsigned long long)(1024 >> 4) << 32 |
         1ull << 62;
}
