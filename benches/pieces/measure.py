"""One cold first call of a model, whole or by pieces, and where its time went: a JSON line.

    python3 benches/pieces/measure.py full|pieces [--processes N] [--layers N] [--early] [--forwards]

Caches are new and empty. The clock starts before the backend is made, when torch is
imported and the model is loaded, and stops when the first result is there. With `--early`
Inductor is imported and the backend made before the model is loaded, as in a program that
does so first, and the clock starts after that. `compare.py` runs this several times.
"""

import argparse
import collections
import contextlib
import importlib
import json
import os
import pathlib
import statistics
import sys
import tempfile
import time

FRESH = tempfile.TemporaryDirectory(prefix="pieces-")
for name in ("XDG_STATE_HOME", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"):
    os.environ[name] = str(pathlib.Path(FRESH.name, name))
sys.path[:0] = [str(pathlib.Path(__file__).resolve().parents[2] / "python")]

import model as models  # noqa: E402
import torch  # noqa: E402

# No CUDA graphs: an artifact has none, and the two are compared as they are.
OPTIONS = {"triton.cudagraphs": False, "coordinate_descent_tuning": False}
LIMITS = {torch.bfloat16: 5e-2, torch.float32: 1e-4}


class Spans:
    """How long named parts took, and when each of them began first and ended last."""

    def __init__(self):
        self.start = time.monotonic()
        self.spans = collections.defaultdict(list)

    def wrap(self, owner, name):
        inner = getattr(owner, name)

        def timed(*args, **kwargs):
            began = time.monotonic()
            try:
                return inner(*args, **kwargs)
            finally:
                self.spans[f"{owner.__name__.rpartition('.')[2]}.{name}"].append(
                    (began, time.monotonic())
                )

        setattr(owner, name, timed)

    def now(self):
        return round(time.monotonic() - self.start, 3)

    def told(self):
        return {
            name: {
                "calls": len(spans),
                "seconds": round(sum(end - began for began, end in spans), 3),
                "first": round(spans[0][1] - spans[0][0], 3),
                "from": round(min(began for began, _ in spans) - self.start, 3),
                "to": round(max(end for _, end in spans) - self.start, 3),
            }
            for name, spans in self.spans.items()
        }


def torchs():
    """Torch's own clock, of this process: some phases are within others."""
    from torch._dynamo.utils import compilation_time_metrics

    found = {name: round(sum(times), 3) for name, times in compilation_time_metrics.items()}
    return {name: seconds for name, seconds in found.items() if seconds >= 0.05}


def by_pieces(given, spans, out):
    """Return the backend; what it does is timed."""
    from kiln_torch import report
    from kiln_torch.compilation import CompilationConfig, KilnBackend, fork_server, piecewise
    from kiln_torch.compilation.request import Request

    for name in ("analyze_graph_for_splitting", "split_graph_into_pieces"):
        spans.wrap(piecewise, name)
    for name in ("create_split_graph_module", "create_piecewise_callable"):
        spans.wrap(piecewise, name)
    for name in ("describe", "in_memory", "look", "finish"):
        spans.wrap(Request, name)

    class Timed(KilnBackend):
        def __call__(self, *args):
            out["until_traced"] = spans.now()
            run = super().__call__(*args)
            out["until_compiled"] = spans.now()
            return run

    config = CompilationConfig(
        compilation_level="piecewise",
        inductor_config=OPTIONS,
        fallback=False,
        validate=False,
        parallel_compiles=max(given.processes, 1),
        compile_timeout=300.0 if given.processes else None,
    )
    backend = Timed(config, tempfile.mkdtemp(dir=FRESH.name))
    out["until_made"] = spans.now()
    pool = backend.compiler_manager.tiers.pool
    started = [] if pool is None else list(pool._idle)

    def tell():
        result = backend.last_result
        kinds = {}
        for piece in result.pieces:
            kinds.setdefault(piece.key, piece)
        out["pieces"], out["distinct"] = len(result.pieces), len(kinds)
        out["wall_compile"] = round(result.wall_seconds, 3)
        out["made"] = [
            {
                "piece": piece.index,
                "outcome": piece.outcome,
                "elsewhere": piece.elsewhere,
                "waited": round(piece.waited_seconds, 3),
                "seconds": round(piece.compile_seconds, 3),
                "phases": {k: round(v, 3) for k, v in piece.phases.items() if v >= 0.05},
            }
            for piece in result.pieces
            if piece.compile_seconds
        ]
        if started:
            ready = fork_server.fork_server().ready
            out["server_ready"] = round(ready.result() - spans.start, 3)
            out["processes_ready"] = [
                [
                    round(each.ready - spans.start, 3),
                    {k: round(v, 3) for k, v in each.steps.items()},
                ]
                for each in started
                if each.ready
            ]
            out["kernels_at_once"] = started[0].threads
        out["stats"] = report.stats()

    return backend, tell


def forwards(call, sync):
    """Milliseconds of a forward: the median of 9 rounds of 20."""
    for _ in range(5):
        call()
    sync()
    took = []
    for _ in range(9):
        began = time.monotonic()
        for _ in range(20):
            call()
        sync()
        took.append((time.monotonic() - began) / 20 * 1e3)
    return round(statistics.median(took), 3)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("how", choices=("full", "pieces"))
    parser.add_argument("--processes", type=int, default=4, help="0: in this one")
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--width", type=int, default=models.WIDTH)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--early", action="store_true", help="the backend before the model")
    parser.add_argument("--forwards", action="store_true", help="then compare forwards as well")
    given = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    sync = torch.cuda.synchronize if device == "cuda" else contextlib.nullcontext
    dtype = getattr(torch, given.dtype)
    out = {
        "early": given.early,
        "how": given.how,
        "processes": given.processes if given.how == "pieces" else None,
        "layers": given.layers,
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "torch": torch.__version__,
        "cores": len(os.sched_getaffinity(0)),
    }
    spans, backend, tell = Spans(), None, lambda: None
    if given.early:
        importlib.import_module("torch._inductor.compile_fx")

        if device == "cuda":
            torch.cuda.init()
        if given.how == "pieces":
            backend, tell = by_pieces(given, spans, out)
    model, inputs = models.made(given.layers, given.width, device, dtype)
    with torch.no_grad():
        wanted = model(*inputs)
        sync()
        out["until_loaded"] = spans.now()
        spans.start = time.monotonic()
        if given.how == "pieces" and backend is None:
            backend, tell = by_pieces(given, spans, out)
        if backend is None:
            run = torch.compile(model, options=OPTIONS)
        else:
            run = torch.compile(model, backend=backend)
        got = run(*inputs)
        sync()
        out["first_call"] = spans.now()
        scale = wanted.abs().max().item()
        out["difference"] = round((got - wanted).abs().max().item() / scale, 5)
        assert out["difference"] <= LIMITS[dtype], out
        tell()
        out["parts"], out["torchs"] = spans.told(), torchs()
        if given.forwards:
            own = forwards(lambda: run(*inputs), sync)
            torch._dynamo.reset()
            whole = torch.compile(model, options=OPTIONS)
            theirs = forwards(lambda: whole(*inputs), sync)
            out["forward"] = [min(own, forwards(lambda: run(*inputs), sync)), theirs]
    print(json.dumps(out), flush=True)


if __name__ == "__main__":
    main()
