// What every generated module starts with. No header is included, so that any
// NVRTC compiles it alone. The tests' CPU emulator defines the primitives that
// are guarded here by itself.

using kiln_index = long long;
using kiln_int = long long;

// Of sizes, among which literals are ints: CUDA's own are ambiguous for these.
__device__ __forceinline__ kiln_index max(kiln_index a, int b) { return a > b ? a : b; }
__device__ __forceinline__ kiln_index max(int a, kiln_index b) { return a > b ? a : b; }
__device__ __forceinline__ kiln_index min(kiln_index a, int b) { return a < b ? a : b; }
__device__ __forceinline__ kiln_index min(int a, kiln_index b) { return a < b ? a : b; }
#ifdef KILN_EMULATED
inline kiln_index max(kiln_index a, kiln_index b) { return a > b ? a : b; }
inline kiln_index min(kiln_index a, kiln_index b) { return a < b ? a : b; }
#endif

#define KILN_INT_MAX 0x7fffffffffffffffLL
#define KILN_INT_MIN (-KILN_INT_MAX - 1)

// Elements in memory.
struct kiln_f64 { double value; };
struct kiln_f32 { float value; };
struct kiln_f16 { unsigned short bits; };
struct kiln_bf16 { unsigned short bits; };
struct kiln_f8e4m3 { unsigned char bits; };
struct kiln_f8e5m2 { unsigned char bits; };
struct kiln_i64 { long long value; };
struct kiln_i32 { int value; };
struct kiln_i16 { short value; };
struct kiln_u16 { unsigned short value; };
struct kiln_i8 { signed char value; };
struct kiln_u8 { unsigned char value; };
struct kiln_bool { unsigned char value; };

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
__device__ __forceinline__ kiln_int kiln_shuffle(kiln_int x, int mask) {
  return __shfl_xor_sync(0xffffffffu, x, mask);
}
__device__ __forceinline__ double kiln_shuffle(double x, int mask) {
  return __longlong_as_double(__shfl_xor_sync(0xffffffffu, __double_as_longlong(x), mask));
}
// A bit for each lane of the warp, set where it holds.
__device__ __forceinline__ unsigned kiln_ballot(bool x) { return __ballot_sync(0xffffffffu, x); }
#endif
__device__ __forceinline__ bool kiln_shuffle(bool x, int mask) {
  return kiln_shuffle((kiln_int)x, mask) != 0;
}

__device__ __forceinline__ double kiln_widen(kiln_f64 x) { return x.value; }
__device__ __forceinline__ float kiln_widen(kiln_f32 x) { return x.value; }
__device__ __forceinline__ float kiln_widen(kiln_bf16 x) {
  return __uint_as_float((unsigned)x.bits << 16);
}
// As a half whose exponent is eight less: it has every number of these, and no NaN.
__device__ __forceinline__ float kiln_widen(kiln_f8e4m3 x) {
  const unsigned bits = x.bits, size = bits & 0x7fu, sign = bits & 0x80u;
  if (size == 0x7fu) return __uint_as_float(sign << 24 | 0x7fc00000u);
  return kiln_widen(kiln_f16{(unsigned short)(sign << 8 | size << 7)}) * 256.0f;
}
// The upper half of a half.
__device__ __forceinline__ float kiln_widen(kiln_f8e5m2 x) {
  return kiln_widen(kiln_f16{(unsigned short)((unsigned)x.bits << 8)});
}
__device__ __forceinline__ kiln_int kiln_widen(kiln_i64 x) { return x.value; }
__device__ __forceinline__ kiln_int kiln_widen(kiln_i32 x) { return x.value; }
__device__ __forceinline__ kiln_int kiln_widen(kiln_i16 x) { return x.value; }
__device__ __forceinline__ kiln_int kiln_widen(kiln_u16 x) { return x.value; }
__device__ __forceinline__ kiln_int kiln_widen(kiln_i8 x) { return x.value; }
__device__ __forceinline__ kiln_int kiln_widen(kiln_u8 x) { return x.value; }
__device__ __forceinline__ bool kiln_widen(kiln_bool x) { return x.value != 0; }

// To the nearest, to even between two.
__device__ __forceinline__ kiln_bf16 kiln_narrow_bf16(float x) {
#if !defined(KILN_EMULATED) && __CUDA_ARCH__ >= 900
  kiln_bf16 y;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
  return y;
#else
  const unsigned bits = __float_as_uint(x);
  if (x != x) return {(unsigned short)((bits >> 16) | 0x40u)};
  return {(unsigned short)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
#endif
}

// To 8 bits with M of them behind the point, to the nearest, to even between two; from LIMIT
// on, and where rounding would go further, END. Below the least normal number the sum with
// one that has its last place where these have theirs rounds.
template <int M, int BIAS, unsigned LIMIT, unsigned END>
__device__ __forceinline__ unsigned char kiln_narrow_f8(float x) {
  const unsigned all = __float_as_uint(x), sign = all >> 24 & 0x80u, bits = all & 0x7fffffffu;
  if (bits > 0x7f800000u) return (unsigned char)(sign | 0x7fu);
  if (bits >= LIMIT) return (unsigned char)(sign | END);
  if (bits < (unsigned)(128 - BIAS) << 23) {
    const unsigned step = (unsigned)(127 + 24 - BIAS - M) << 23;
    return (unsigned char)(sign | (__float_as_uint(__uint_as_float(bits) + __uint_as_float(step)) - step));
  }
  const unsigned odd = bits >> (23 - M) & 1u, half = (1u << (22 - M)) - 1u;
  const unsigned near = (bits - ((unsigned)(127 - BIAS) << 23) + half + odd) >> (23 - M);
  return (unsigned char)(sign | (near < END ? near : END));
}
// e4m3fn has no infinity: what is too large is its greatest. 480 and 65536 are the first that are
// not there.
__device__ __forceinline__ kiln_f8e4m3 kiln_narrow_f8e4m3(float x) {
#if !defined(KILN_EMULATED) && __CUDA_ARCH__ >= 890
  unsigned short y;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(y) : "f"(0.0f), "f"(x));
  const unsigned sign = __float_as_uint(x) >> 24 & 0x80u;
  return {(unsigned char)(x != x ? sign | 0x7fu : y)};
#else
  return {kiln_narrow_f8<3, 7, 0x43f00000u, 0x7eu>(x)};
#endif
}
__device__ __forceinline__ kiln_f8e5m2 kiln_narrow_f8e5m2(float x) {
#if !defined(KILN_EMULATED) && __CUDA_ARCH__ >= 890
  // The instruction keeps what is too large finite: from halfway to 65536 on that is its infinity.
  unsigned short y;
  asm("cvt.rn.satfinite.e5m2x2.f32 %0, %1, %2;" : "=h"(y) : "f"(0.0f), "f"(x));
  const unsigned sign = __float_as_uint(x) >> 24 & 0x80u, size = __float_as_uint(x) & 0x7fffffffu;
  return {(unsigned char)(x != x ? sign | 0x7fu : size >= 0x47700000u ? sign | 0x7cu : y)};
#else
  return {kiln_narrow_f8<2, 15, 0x47800000u, 0x7cu>(x)};
#endif
}

__device__ __forceinline__ void kiln_set(kiln_f64& to, double x) { to.value = x; }
__device__ __forceinline__ void kiln_set(kiln_f8e4m3& to, float x) { to = kiln_narrow_f8e4m3(x); }
__device__ __forceinline__ void kiln_set(kiln_f8e5m2& to, float x) { to = kiln_narrow_f8e5m2(x); }
__device__ __forceinline__ void kiln_set(kiln_f32& to, float x) { to.value = x; }
__device__ __forceinline__ void kiln_set(kiln_f16& to, float x) { to = kiln_narrow_f16(x); }
__device__ __forceinline__ void kiln_set(kiln_bf16& to, float x) { to = kiln_narrow_bf16(x); }
__device__ __forceinline__ void kiln_set(kiln_i64& to, kiln_int x) { to.value = x; }
__device__ __forceinline__ void kiln_set(kiln_i32& to, kiln_int x) { to.value = (int)x; }
__device__ __forceinline__ void kiln_set(kiln_i16& to, kiln_int x) { to.value = (short)x; }
__device__ __forceinline__ void kiln_set(kiln_u16& to, kiln_int x) { to.value = (unsigned short)x; }
__device__ __forceinline__ void kiln_set(kiln_i8& to, kiln_int x) { to.value = (signed char)x; }
__device__ __forceinline__ void kiln_set(kiln_u8& to, kiln_int x) { to.value = (unsigned char)x; }
__device__ __forceinline__ void kiln_set(kiln_bool& to, bool x) { to.value = x; }

// What T holds of a number.
template <class T, class R> __device__ __forceinline__ R kiln_round(R x) {
  T narrow;
  kiln_set(narrow, x);
  return kiln_widen(narrow);
}
#if !defined(KILN_EMULATED) && __CUDA_ARCH__ >= 800
// As one of two: that instruction is many times as fast as the one for one, and the upper half
// of a word is the number itself.
template <> __device__ __forceinline__ float kiln_round<kiln_bf16, float>(float x) {
  unsigned y;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(x), "f"(0.0f));
  return __uint_as_float(y);
}
#endif

// A kernel may begin while earlier ones of the module still run (programmatic
// dependent launch, sm_90). `kiln_begin` lets the next one begin, once all blocks
// of this one have said so; after `kiln_wait` all that the earlier ones wrote is
// there. Before it only parameters, buffers and constants may be read, and nothing
// written: what a user gives may be what the launch before the first one writes.
__device__ __forceinline__ void kiln_begin() {
#if !defined(KILN_EMULATED) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
__device__ __forceinline__ void kiln_wait() {
#if !defined(KILN_EMULATED) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
// 32 bytes to the L2 cache.
__device__ __forceinline__ void kiln_prefetch(const void* p) {
#if !defined(KILN_EMULATED) && __CUDA_ARCH__ >= 900
  asm volatile("prefetch.global.L2 [%0];" ::"l"(p) : "memory");
#endif
}

// N neighbours at once; `p` is aligned to all of them, or to 16 bytes.
template <int N, class T, class R>
__device__ __forceinline__ void kiln_load(const T* p, R (&x)[N]) {
  const kiln_pack<T, N> pack = *reinterpret_cast<const kiln_pack<T, N>*>(p);
#pragma unroll
  for (int i = 0; i < N; ++i) x[i] = kiln_widen(pack.at[i]);
}

template <int N, class T, class R>
__device__ __forceinline__ void kiln_store(T* p, const R (&x)[N]) {
  kiln_pack<T, N> pack;
#pragma unroll
  for (int i = 0; i < N; ++i) kiln_set(pack.at[i], x[i]);
  *reinterpret_cast<kiln_pack<T, N>*>(p) = pack;
}

// The same number N times.
template <int N, class T, class R> __device__ __forceinline__ void kiln_fill(T* p, R x) {
  kiln_pack<T, N> pack;
#pragma unroll
  for (int i = 0; i < N; ++i) kiln_set(pack.at[i], x);
  *reinterpret_cast<kiln_pack<T, N>*>(p) = pack;
}

// Functions, with PyTorch's choices where C has none.
__device__ __forceinline__ float kiln_sigmoid(float x) {
  const float y = 1.0f + expf(-x);
#ifdef KILN_EMULATED
  return 1.0f / y;
#else
  // To one unit in the last place; a division would branch.
  float z;
  asm("rcp.approx.f32 %0, %1;" : "=f"(z) : "f"(y));
  return z;
#endif
}
__device__ __forceinline__ double kiln_sigmoid(double x) { return 1.0 / (1.0 + exp(-x)); }
__device__ __forceinline__ float kiln_fma(float a, float b, float c) { return fmaf(a, b, c); }
__device__ __forceinline__ double kiln_fma(double a, double b, double c) { return fma(a, b, c); }
__device__ __forceinline__ kiln_int kiln_abs(kiln_int x) { return x < 0 ? -x : x; }
__device__ __forceinline__ bool kiln_abs(bool x) { return x; }
__device__ __forceinline__ float kiln_sign(float x) { return (float)((x > 0.0f) - (x < 0.0f)); }
__device__ __forceinline__ double kiln_sign(double x) { return (double)((x > 0.0) - (x < 0.0)); }
__device__ __forceinline__ kiln_int kiln_sign(kiln_int x) { return (x > 0) - (x < 0); }
__device__ __forceinline__ bool kiln_sign(bool x) { return x; }
__device__ __forceinline__ kiln_int kiln_to_int(float x) {
  if (x != x) return 0;
  if (x >= 9223372036854775808.0f) return KILN_INT_MAX;
  return x <= -9223372036854775808.0f ? KILN_INT_MIN : (kiln_int)x;
}
__device__ __forceinline__ kiln_int kiln_to_int(double x) {
  if (x != x) return 0;
  if (x >= 9223372036854775808.0) return KILN_INT_MAX;
  return x <= -9223372036854775808.0 ? KILN_INT_MIN : (kiln_int)x;
}
template <class T> __device__ __forceinline__ T kiln_min(T a, T b) {
  return a < b || a != a ? a : b;
}
template <class T> __device__ __forceinline__ T kiln_max(T a, T b) {
  return a > b || a != a ? a : b;
}
__device__ __forceinline__ float kiln_fmod(float a, float b) { return fmodf(a, b); }
__device__ __forceinline__ double kiln_fmod(double a, double b) { return fmod(a, b); }
__device__ __forceinline__ kiln_int kiln_fmod(kiln_int a, kiln_int b) {
  return b == 0 ? a : b == -1 ? 0 : a % b;
}
__device__ __forceinline__ float kiln_remainder(float a, float b) {
  const float left = fmodf(a, b);
  return left != 0.0f && (b < 0.0f) != (left < 0.0f) ? left + b : left;
}
__device__ __forceinline__ double kiln_remainder(double a, double b) {
  const double left = fmod(a, b);
  return left != 0.0 && (b < 0.0) != (left < 0.0) ? left + b : left;
}
__device__ __forceinline__ kiln_int kiln_remainder(kiln_int a, kiln_int b) {
  const kiln_int left = kiln_fmod(a, b);
  return b != 0 && left != 0 && (b < 0) != (left < 0) ? left + b : left;
}
__device__ __forceinline__ float kiln_trunc_div(float a, float b) { return truncf(a / b); }
__device__ __forceinline__ double kiln_trunc_div(double a, double b) { return trunc(a / b); }
__device__ __forceinline__ kiln_int kiln_trunc_div(kiln_int a, kiln_int b) {
  return b == 0 ? -1 : b == -1 ? (kiln_int)(0ull - (unsigned long long)a) : a / b;
}
// Exact where the quotient's rounding would cross a whole number.
__device__ __forceinline__ float kiln_floor_div(float a, float b) {
  if (b == 0.0f) return a / b;
  const float left = fmodf(a, b);
  float quotient = (a - left) / b;
  if (left != 0.0f && (b < 0.0f) != (left < 0.0f)) quotient -= 1.0f;
  if (quotient == 0.0f) return copysignf(0.0f, a / b);
  const float down = floorf(quotient);
  return quotient - down > 0.5f ? down + 1.0f : down;
}
__device__ __forceinline__ double kiln_floor_div(double a, double b) {
  if (b == 0.0) return a / b;
  const double left = fmod(a, b);
  double quotient = (a - left) / b;
  if (left != 0.0 && (b < 0.0) != (left < 0.0)) quotient -= 1.0;
  if (quotient == 0.0) return copysign(0.0, a / b);
  const double down = floor(quotient);
  return quotient - down > 0.5 ? down + 1.0 : down;
}
__device__ __forceinline__ kiln_int kiln_floor_div(kiln_int a, kiln_int b) {
  if (b == 0) return -1;
  const kiln_int left = kiln_fmod(a, b);
  return kiln_trunc_div(a, b) - (left != 0 && (left < 0) != (b < 0));
}
__device__ __forceinline__ kiln_int kiln_pow(kiln_int base, kiln_int power) {
  if (power < 0) return base == 1 ? 1 : base != -1 ? 0 : power % 2 == 0 ? 1 : -1;
  unsigned long long result = 1, square = (unsigned long long)base;
  for (; power > 0; power >>= 1, square *= square)
    if (power & 1) result *= square;
  return (kiln_int)result;
}
__device__ __forceinline__ kiln_int kiln_shl(kiln_int a, kiln_int by) {
  return by < 0 || by > 63 ? 0 : (kiln_int)((unsigned long long)a << by);
}
__device__ __forceinline__ kiln_int kiln_shr(kiln_int a, kiln_int by) {
  return a >> (by < 0 || by > 63 ? 63 : by);
}

// Two numbers to one. In any order: the same bits from both sides.
struct kiln_add {
  template <class T> __device__ __forceinline__ T operator()(T a, T b) const { return a + b; }
};
struct kiln_mul {
  template <class T> __device__ __forceinline__ T operator()(T a, T b) const { return a * b; }
};
struct kiln_greatest {
  template <class T> __device__ __forceinline__ T operator()(T a, T b) const {
    return kiln_max(a, b);
  }
};
struct kiln_least {
  template <class T> __device__ __forceinline__ T operator()(T a, T b) const {
    return kiln_min(a, b);
  }
};
struct kiln_any {
  __device__ __forceinline__ bool operator()(bool a, bool b) const { return a || b; }
};
struct kiln_all {
  __device__ __forceinline__ bool operator()(bool a, bool b) const { return a && b; }
};

// A number and where it was; KILN_INT_MAX: nowhere.
template <class T> struct kiln_best {
  T value;
  kiln_int at;
};
template <class T>
__device__ __forceinline__ kiln_best<T> kiln_shuffle(kiln_best<T> x, int mask) {
  return {kiln_shuffle(x.value, mask), kiln_shuffle(x.at, mask)};
}

// The first of both in an order in which `before` says what comes first for sure.
template <class T>
__device__ __forceinline__ kiln_best<T> kiln_first(kiln_best<T> a, kiln_best<T> b, bool a_before,
                                                   bool b_before) {
  if (a.at == KILN_INT_MAX || b.at == KILN_INT_MAX) return a.at < b.at ? a : b;
  if (a_before != b_before) return a_before ? a : b;
  return a.at < b.at ? a : b;
}
// NaN is the greatest.
struct kiln_first_greatest {
  template <class T>
  __device__ __forceinline__ kiln_best<T> operator()(kiln_best<T> a, kiln_best<T> b) const {
    const bool a_nan = a.value != a.value, b_nan = b.value != b.value;
    return kiln_first(a, b, a_nan ? !b_nan : a.value > b.value, b_nan ? !a_nan : b.value > a.value);
  }
};
// NaN is the least.
struct kiln_first_least {
  template <class T>
  __device__ __forceinline__ kiln_best<T> operator()(kiln_best<T> a, kiln_best<T> b) const {
    const bool a_nan = a.value != a.value, b_nan = b.value != b.value;
    return kiln_first(a, b, a_nan ? !b_nan : a.value < b.value, b_nan ? !a_nan : b.value < a.value);
  }
};
// The least first, NaN last.
struct kiln_last_greatest {
  template <class T>
  __device__ __forceinline__ kiln_best<T> operator()(kiln_best<T> a, kiln_best<T> b) const {
    const bool a_nan = a.value != a.value, b_nan = b.value != b.value;
    return kiln_first(a, b, b_nan ? !a_nan : a.value < b.value, a_nan ? !b_nan : b.value < a.value);
  }
};

// What the lanes of a thread have, in pairs.
template <class Op, class T, int N> __device__ __forceinline__ T kiln_together(T (&x)[N]) {
#pragma unroll
  for (int step = 1; step < N; step *= 2)
#pragma unroll
    for (int i = 0; i + step < N; i += 2 * step) x[i] = Op{}(x[i], x[i + step]);
  return x[0];
}

// What T threads have, the same bits in each of them. T is the block, or at most 32 and
// a power of two: neighbours of a warp.
template <int T, class Op, class R> __device__ __forceinline__ R kiln_across(R x) {
#pragma unroll
  for (int mask = (T < 32 ? T : 32) / 2; mask > 0; mask >>= 1) x = Op{}(x, kiln_shuffle(x, mask));
  if constexpr (T > 32) {
    __shared__ R parts[T / 32];
    __syncthreads();  // The last ones were read by all.
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = x;
    __syncthreads();
    x = parts[0];
#pragma unroll
    for (int i = 1; i < T / 32; ++i) x = Op{}(x, parts[i]);
  }
  return x;
}
