// Rows in order: chunks of a row are sorted each by itself, then each element finds how many of
// every other chunk come before it.
//
//   kiln_sort_chunk<CHUNK, Order, R>(x, columns, chunk, to)      a block for each chunk
//   kiln_merge_chunks<CHUNK, Order, R>(x, runs, columns, k, own, take)   a thread for each element
//
// `x(c)` is element c of the row, as R; `to` and `runs` have a place for each of them; Order is
// one of the preamble's. `take(place, one)` is given each of the first k and its place in the row.
//
// Invariant: each of the first k places of a row is given one element. NaN is the greatest, and among equals the
// first position comes first.

template <class Order, class R>
__device__ __forceinline__ bool kiln_before(kiln_best<R> a, kiln_best<R> b) {
  return a.at != b.at && Order{}(a, b).at == a.at;
}

template <int CHUNK, class Order, class R, class X>
__device__ __forceinline__ void kiln_sort_chunk(const X& x, kiln_index columns, kiln_index chunk,
                                                kiln_i32* to) {
  __shared__ kiln_best<R> held[CHUNK];
  const kiln_index start = chunk * CHUNK;
  for (int i = threadIdx.x; i < CHUNK; i += blockDim.x) {
    // What is behind the row comes last, and is nowhere.
    kiln_best<R> one = {R(), KILN_INT_MAX};
    if (start + i < columns) one = {x(start + i), start + i};
    held[i] = one;
  }
  __syncthreads();
  for (int size = 2; size <= CHUNK; size *= 2) {
    for (int step = size / 2; step > 0; step /= 2) {
      for (int i = threadIdx.x; i < CHUNK / 2; i += blockDim.x) {
        const int low = i / step * (2 * step) + i % step, high = low + step;
        const kiln_best<R> a = held[low], b = held[high];
        if (kiln_before<Order>(b, a) == ((low & size) == 0)) {
          held[low] = b;
          held[high] = a;
        }
      }
      __syncthreads();
    }
  }
  for (int i = threadIdx.x; i < CHUNK; i += blockDim.x) {
    if (start + i < columns) to[start + i] = kiln_i32{(int)held[i].at};
  }
}

template <int CHUNK, class Order, class R, class X, class Take>
__device__ __forceinline__ void kiln_merge_chunks(const X& x, const kiln_i32* runs,
                                                  kiln_index columns, kiln_index k,
                                                  kiln_index own, const Take& take) {
  if (own >= columns || own % CHUNK >= k) return;
  auto element = [&](kiln_index i) {
    const kiln_index at = runs[i].value;
    return kiln_best<R>{x(at), (kiln_int)at};
  };
  const kiln_best<R> one = element(own);
  kiln_index place = own % CHUNK;
  for (kiln_index first = 0; first < columns; first += CHUNK) {
    if (first == own - own % CHUNK) continue;
    kiln_index low = first, high = first + CHUNK < columns ? first + CHUNK : columns;
    while (low < high) {
      const kiln_index middle = low + (high - low) / 2;
      if (kiln_before<Order>(element(middle), one)) low = middle + 1;
      else high = middle;
    }
    place += low - first;
    if (place >= k) return;
  }
  take(place, one);
}
