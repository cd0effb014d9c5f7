"""Times the product kernels on a GPU beside torch, each checked against f64 first.

    python3 benches/products/measure.py [prefill] [persistent|wgmma|mma|vector|cores]...

Compiles the templates of `src/native/codegen/product` by themselves, every tile for
every shape that it suits. A shape's weights alternate between copies that no cache holds
where rows are few; launches are replayed from a CUDA graph, as torch's are. The times in
`product/tiles.rs` come from here.
"""

import ctypes
import dataclasses
import pathlib
import sys

import torch
from driver import Kernel, Nvrtc

SOURCES = pathlib.Path(__file__).resolve().parents[2] / "src/native/codegen"
ELEMENT = {torch.bfloat16: "kiln_bf16", torch.float16: "kiln_f16", torch.float32: "kiln_f32"}
# As `tiles.rs` has them.
WGMMA = [
    (2, 256, 4, 1),
    (2, 192, 5, 1),
    (1, 256, 5, 1),
    (2, 128, 3, 2),
    (2, 128, 6, 1),
    (2, 96, 6, 1),
]
WGMMA += [(1, 128, 8, 1), (1, 96, 8, 1), (1, 64, 6, 2), (1, 64, 8, 1), (1, 32, 12, 1)]
PERSISTENT = [(2, 256, 4, 1), (2, 192, 5, 1), (1, 256, 5, 1), (2, 128, 3, 2), (2, 128, 7, 1)]
PERSISTENT += [
    (2, 96, 7, 1),
    (1, 128, 8, 1),
    (1, 128, 4, 2),
    (1, 96, 8, 1),
    (1, 96, 5, 2),
    (1, 64, 6, 2),
]
PERSISTENT += [(1, 64, 8, 1), (1, 32, 12, 1), (1, 32, 9, 2)]
MMA = [(128, 128, 2, 4, 3), (128, 64, 4, 2, 4), (64, 64, 2, 2, 4), (64, 32, 4, 1, 4)]
MMA += [(32, 64, 2, 2, 4), (16, 64, 1, 4, 4)]
VECTOR = [(4, 1, 1), (4, 2, 1), (4, 4, 1), (4, 1, 2), (4, 2, 2), (8, 8, 2)]
CORES = [(128, 128, 8, 8), (64, 64, 16, 4), (32, 32, 32, 4)]
PROCESSORS = 132
# Of a layer of 8B's size: rows, columns, what is summed over.
PREFILL = [(m, n, k) for m in (2048, 8192) for n, k in [(4096, 4096), (14336, 4096), (4096, 14336)]]
# N and K: projections of a small decoder's block, and a square.
SHAPES = [(2048, 1024), (1024, 1024), (1024, 2048), (3072, 1024), (1024, 3072), (4096, 1024)]


@dataclasses.dataclass
class Launch:
    """A kernel and what it takes; the names are those of `choose.rs`."""

    call: str
    tile: tuple
    threads: int
    shared: int
    blocks: int = 1
    split: int = 1
    maps: bool = False
    # Of a persistent kernel.
    stages: int = 0

    def grid(self, m, n):
        return -(-m // self.tile[0]) * -(-n // self.tile[1]) * self.split


def launches(variants, m, n, dtype):
    half = dtype != torch.float32
    staged = lambda rows, columns, stages: max(
        stages * (rows + columns) * 128, rows * (columns + 8) * 4
    )
    if "wgmma" in variants and half and m > 1:
        for groups, columns, stages, blocks in WGMMA:
            call = f"kiln_product_wgmma<P, {ELEMENT[dtype]}, {groups}, {columns}, {stages}>"
            shared = 1024 + staged(64 * groups, columns, stages)
            yield Launch(call, (64 * groups, columns), groups * 128 + 32, shared, blocks, maps=True)
    if "persistent" in variants and half and m > 1:
        for groups, columns, stages, blocks in PERSISTENT:
            call = f"kiln_product_persistent<P, {ELEMENT[dtype]}, {groups}, {columns}, {stages}>"
            shared = 1024 + stages * (64 * groups + columns) * 128
            tile, threads = (64 * groups, columns), groups * 128 + 32
            yield Launch(call, tile, threads, shared, blocks, maps=True, stages=stages)
    if "mma" in variants and half and m > 1:
        for rows, columns, down, across, stages in MMA:
            for split in (1, 2, 4, 8):
                call = (
                    f"kiln_product_mma<P, {rows}, {columns}, {down}, {across}, {stages}, {split}>"
                )
                shared = staged(rows, columns, stages)
                yield Launch(call, (rows, columns), down * across * 32, shared, split=split)
    if "vector" in variants and m <= 8:
        for warps, split, columns in VECTOR:
            call = f"kiln_product_vector<P, {m}, {warps}, {split}, {columns}>"
            shared = warps * columns * m * 4
            yield Launch(call, (m, warps // split * columns), warps * 32, shared)
    if "cores" in variants and not half:
        for rows, columns, depth, of_thread in CORES:
            call = f"kiln_product_cores<P, {rows}, {columns}, {depth}, {of_thread}>"
            threads = rows // of_thread * columns // 8
            yield Launch(call, (rows, columns), threads, 8 * depth * (rows + columns + 8))


def source(launch, m, n, k, dtype, gelu):
    """A module with `launch` for x[m, k] @ w[n, k].T, perhaps with bias and GELU."""
    variant = launch.call.split("<")[0].removeprefix("kiln_product_")
    names = ["preamble.cu", "instructions.cu", "hopper.cu", "product/tensor.cu"]
    names += ["product/wgmma.cu"] if variant == "persistent" else []
    names.append(f"product/{variant}.cu")
    texts = [(SOURCES / name).read_text(encoding="utf-8") for name in names]
    element = ELEMENT[dtype]
    operand = "const __grid_constant__ kiln_tensor_map" if launch.maps else f"const {element}*"
    cluster = f"__cluster_dims__({launch.split}, 1, 1)" if launch.split > 1 else ""
    value = "y * 0.5f * (1.0f + erff(y * 0.70710678f))" if gelu else "x[v]"
    bias = "float c[V]; kiln_load(bias + n, c);" if gelu else ""
    add = "const float y = x[v] + c[v];" if gelu else ""
    call = f"{launch.call}(a, b, P{{}}, Write{{bias, out}}, blockIdx.x);"
    whole = ["true" if size % of == 0 else "false" for size, of in zip((m, n), launch.tile)]
    if variant == "persistent":
        groups, stages = launch.tile[0] // 64, launch.stages
        call = f"""kiln_pipe pipe;
  kiln_pipe_begin<{groups}, {stages}>();
  for (unsigned block = blockIdx.x; block < {launch.grid(m, n)}; block += gridDim.x)
    {launch.call}(a, b, P{{}}, Write{{bias, out}}, pipe, block, b);"""
    kernel = f"""
struct P {{
  static constexpr kiln_index M = {m}, N = {n}, K = {k}, BATCH = 1, AM = {k}, AK = 1, BK = 1, BN = {k};
  static constexpr bool ALIGNED = true, A_ALONG_K = true, A_ALONG_M = false;
  static constexpr bool B_ALONG_K = true, B_ALONG_N = false, WIDE = true, B_GIVEN = true;
  static constexpr bool TWIN = false, ROWS_WHOLE = {whole[0]}, COLUMNS_WHOLE = {whole[1]};
  __device__ __forceinline__ kiln_index A_BATCH(kiln_index) const {{ return 0; }}
  __device__ __forceinline__ kiln_index B_BATCH(kiln_index) const {{ return 0; }}
}};
struct Write {{
  const {element}* bias; {element}* out;
  template <int V> __device__ __forceinline__ void row(kiln_index, kiln_index m, kiln_index n,
                                                       const float (&x)[V]) const {{
    {bias}
    float to[V];
    for (int v = 0; v < V; ++v) {{ {add} to[v] = {value}; }}
    kiln_store(out + m * {n} + n, to);
  }}
  template <int V> __device__ __forceinline__ auto early(kiln_index z, kiln_index m,
                                                         kiln_index n) const {{
    return [=, *this](const float (&x)[V]) {{ row<V>(z, m, n, x); }};
  }}
}};
extern "C" __global__ void __launch_bounds__({launch.threads}, {launch.blocks}) {cluster} product(
    {operand} a, {operand} b, const {element}* bias, {element}* out) {{
  {call}
}}
"""
    return "\n".join([*texts, kernel])


def replayed(function, count):
    """Microseconds of one of `count` calls in a graph: the median of several replays."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        function(0)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for i in range(count):
            function(i)
    times = []
    for _ in range(8):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) * 1000 / count)
    return sorted(times[1:])[3]


def measure(variants, m, n, k, dtype, gelu=False):
    copies = 1 if m > 1024 else max(1, min(48, int(160e6 / (n * k * dtype.itemsize)) + 1))
    x = torch.randn(m, k, device="cuda").to(dtype)
    weights = [(torch.randn(n, k, device="cuda") / k**0.5).to(dtype) for _ in range(copies)]
    bias = torch.randn(n, device="cuda").to(dtype)
    out = torch.empty(m, n, device="cuda", dtype=dtype)
    functional = torch.nn.functional

    def torch_does(i, x=x, bias=bias, of=weights):
        y = functional.linear(x, of[i % copies], bias if gelu else None)
        return functional.gelu(y) if gelu else y

    right = torch_does(0, x.double(), bias.double(), [weights[0].double()] * copies)
    count = max(copies, 10 if m > 1024 else 24)
    theirs = replayed(torch_does, count)
    for launch in launches(variants, m, n, dtype):
        if launch.maps and not launch.stages and not 40 <= launch.grid(m, n) <= 4000:
            continue
        kernel = Kernel(
            Nvrtc().cubin(source(launch, m, n, k, dtype, gelu)), "product", launch.shared
        )

        def operand(matrix, rows, launch=launch, kernel=kernel):
            if not launch.maps:
                return ctypes.c_void_p(matrix.data_ptr())
            half = dtype == torch.float16
            return kernel.tensor_map(
                matrix.data_ptr(), (k, matrix.shape[0]), 2 * k, (64, rows), half
            )

        a = operand(x, launch.tile[0])
        bs = [operand(weight, launch.tile[1]) for weight in weights]
        rest = [ctypes.c_void_p(bias.data_ptr()), ctypes.c_void_p(out.data_ptr())]

        def ours(i, launch=launch, kernel=kernel, a=a, bs=bs, rest=rest):
            stream = torch.cuda.current_stream().cuda_stream
            grid = launch.grid(m, n)
            grid = min(grid, PROCESSORS * launch.blocks) if launch.stages else grid
            kernel.launch(grid, launch.threads, [a, bs[i % copies], *rest], stream)

        out.fill_(float("nan"))
        ours(0)
        torch.cuda.synchronize()
        error = ((out.double() - right).norm() / right.norm()).item()
        assert error < (2e-6 if dtype == torch.float32 else 4e-3), (launch.call, m, n, k, error)
        time = replayed(ours, count)
        print(
            f"{m:5}x{n:6}x{k:5} {'gelu ' if gelu else ''}{launch.call:46} {time:8.2f} us, "
            f"torch {theirs:8.2f} us, {time / theirs:.2f}; {2e-6 * m * n * k / time:4.0f} TFLOP/s, "
            f"error {error:.1e}",
            flush=True,
        )


def main():
    variants = sys.argv[1:] or ["persistent", "wgmma", "mma", "vector", "cores"]
    torch.manual_seed(0)
    if "prefill" in variants:
        for m, n, k in PREFILL:
            measure(variants, m, n, k, torch.bfloat16)
        return
    for m in (1, 8, 16, 64, 256, 4096):
        for n, k in SHAPES:
            measure(variants, m, n, k, torch.bfloat16)
    measure(variants, 1, 151936, 1024, torch.bfloat16)
    measure(variants, 4096, 4096, 4096, torch.bfloat16, gelu=True)
    for m in (256, 2048):
        measure(variants, m, 2048, 2048, torch.float32)


if __name__ == "__main__":
    main()
