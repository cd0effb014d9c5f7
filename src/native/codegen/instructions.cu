// The instructions that C++ has no words for: copies to shared memory in the
// background, matrices of the tensor cores, clusters. Those that an architecture
// lacks do nothing there: no kernel for it is chosen that calls them. The CPU
// emulator of the tests has its own.

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

// Two numbers in one word, `low` in its low half.
__device__ __forceinline__ unsigned kiln_pair(float low, float high, kiln_bf16) {
  unsigned y;
#if __CUDA_ARCH__ >= 800
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
#else
  y = 0;
#endif
  return y;
}
__device__ __forceinline__ unsigned kiln_pair(float low, float high, kiln_f16) {
  unsigned y;
#if __CUDA_ARCH__ >= 800
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
#else
  y = 0;
#endif
  return y;
}
// 2^x to two units in the last place; zero at minus infinity.
__device__ __forceinline__ float kiln_exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// Which of its cluster's blocks this one is.
__device__ __forceinline__ unsigned kiln_cluster_rank() {
  unsigned rank = 0;
#if __CUDA_ARCH__ >= 900
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
#endif
  return rank;
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
// The number at the place of `p` there.
__device__ __forceinline__ float kiln_cluster_read(const float* p, int rank) {
  float x = 0.0f;
#if __CUDA_ARCH__ >= 900
  unsigned at;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(at) : "r"(kiln_shared_address(p)), "r"(rank));
  asm volatile("ld.shared::cluster.f32 %0, [%1];" : "=f"(x) : "r"(at) : "memory");
#endif
  return x;
}
#endif
