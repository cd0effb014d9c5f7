// What every generated module starts with. No header is included, so that any
// NVRTC compiles it alone. The tests' CPU emulator defines the primitives that
// are guarded here by itself.

using kiln_index = long long;

struct kiln_f32 { float value; };
struct kiln_f16 { unsigned short bits; };
struct kiln_bf16 { unsigned short bits; };

template <class T, int N> struct alignas(sizeof(T) * N > 16 ? 16 : sizeof(T) * N) kiln_pack {
  T at[N];
};

#ifndef KILN_EMULATED
__device__ __forceinline__ float kiln_widen(kiln_f16 x) {
  float y;
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
  return y;
}
__device__ __forceinline__ kiln_f16 kiln_narrow_f16(float x) {
  kiln_f16 y;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
  return y;
}
__device__ __forceinline__ float kiln_shuffle(float x, int mask) {
  return __shfl_xor_sync(0xffffffffu, x, mask);
}
#endif

__device__ __forceinline__ float kiln_widen(kiln_f32 x) { return x.value; }
__device__ __forceinline__ float kiln_widen(kiln_bf16 x) {
  return __uint_as_float((unsigned)x.bits << 16);
}

// Rounds to the nearest, to even between two: as the hardware does.
__device__ __forceinline__ kiln_bf16 kiln_narrow_bf16(float x) {
  const unsigned bits = __float_as_uint(x);
  if (x != x) return {(unsigned short)((bits >> 16) | 0x40u)};
  return {(unsigned short)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
}

__device__ __forceinline__ void kiln_set(kiln_f32& to, float x) { to.value = x; }
__device__ __forceinline__ void kiln_set(kiln_f16& to, float x) { to = kiln_narrow_f16(x); }
__device__ __forceinline__ void kiln_set(kiln_bf16& to, float x) { to = kiln_narrow_bf16(x); }

// The nearest number that T holds.
template <class T> __device__ __forceinline__ float kiln_round(float x) {
  T narrow;
  kiln_set(narrow, x);
  return kiln_widen(narrow);
}

// N neighbours at once; `p` is aligned to all of them, or to 16 bytes.
template <int N, class T> __device__ __forceinline__ void kiln_load(const T* p, float (&x)[N]) {
  const kiln_pack<T, N> pack = *reinterpret_cast<const kiln_pack<T, N>*>(p);
#pragma unroll
  for (int i = 0; i < N; ++i) x[i] = kiln_widen(pack.at[i]);
}

// N elements, `stride` apart.
template <int N, class T>
__device__ __forceinline__ void kiln_gather(const T* p, kiln_index stride, float (&x)[N]) {
#pragma unroll
  for (int i = 0; i < N; ++i) x[i] = kiln_widen(p[i * stride]);
}

template <int N, class T> __device__ __forceinline__ void kiln_store(T* p, const float (&x)[N]) {
  kiln_pack<T, N> pack;
#pragma unroll
  for (int i = 0; i < N; ++i) kiln_set(pack.at[i], x[i]);
  *reinterpret_cast<kiln_pack<T, N>*>(p) = pack;
}

__device__ __forceinline__ float kiln_sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }
__device__ __forceinline__ float kiln_silu(float x) { return x / (1.0f + expf(-x)); }

// The sum over T threads, the same bits in each of them. T is 32 or the block.
template <int T> __device__ __forceinline__ float kiln_sum(float x) {
#pragma unroll
  for (int mask = 16; mask > 0; mask >>= 1) x += kiln_shuffle(x, mask);
  if constexpr (T > 32) {
    __shared__ float parts[T / 32];
    __syncthreads();  // The last sum was read by all.
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = x;
    __syncthreads();
    x = 0.0f;
#pragma unroll
    for (int i = 0; i < T / 32; ++i) x += parts[i];
  }
  return x;
}
