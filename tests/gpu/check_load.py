#!/usr/bin/env python3
"""Loads compiled artifacts with kiln_torch and judges them on torch tensors.

usage: PYTHONPATH=python check_load.py DIR[=GOLDEN] ... [--eps 1e-6]

DIR is what `kiln compile -o DIR` wrote. Without GOLDEN the artifact must be the
fixture block: random inputs go through `kiln_torch.load(DIR)`, and through
PyTorch in float64 and in eager mode. With GOLDEN (a safetensors file with `in0`,
..., `out0`, ...) any artifact is judged. Also checked: another stream, a CUDA
graph, bound parameters, `graphed`, and that wrong inputs are refused; where sizes
are symbols, several of each. One line of JSON for each artifact.
Exits 1 if something does not hold, 2 if a run failed.
"""

import argparse
import json
import sys
import traceback
from pathlib import Path

import kiln_torch
import torch
from check_block import LIMITS, NAMES, TYPES, block, errors, load, micros
from kiln_torch.sizes import value


def sizes(plan):
    """Values for the plan's symbols: one set, or where there are symbols three."""
    if not plan.symbols:
        return [[]]

    def bound(symbol, size):
        return max(symbol.min, min(size, symbol.max or size))

    return [[bound(s, size + i) for i, s in enumerate(plan.symbols)] for size in (1, 5, 64)]


def random_inputs(given, symbols):
    """The fixture block's, of the plan's shapes."""
    if len(given) != 5:
        raise ValueError(f"{len(given)} inputs: not the fixture block; give DIR=GOLDEN")
    torch.manual_seed(3)
    tensors = []
    for wanted in given:
        shape = [value(each, symbols) for each in wanted.shape]
        scale = shape[-1] ** -0.5 if len(shape) == 2 else 1.0
        numbers = torch.randn(shape, dtype=torch.float64) * scale
        numbers = 1.0 + 0.2 * numbers if len(shape) == 1 else numbers
        tensors.append(numbers.to(TYPES[NAMES[wanted.dtype]]))
    return tensors


def laid_out(numbers, wanted, symbols):
    """On the GPU, with the plan's strides."""
    strides = [value(each, symbols) for each in wanted.strides]
    kind = {"dtype": numbers.dtype, "device": "cuda"}
    return torch.empty_strided(numbers.shape, strides, **kind).copy_(numbers)


def is_refused(native, tensors):
    try:
        native(*tensors)
    except (TypeError, ValueError):
        return True
    return False


def wrong(given):
    """Inputs that are not the plan's, by what is wrong with them."""
    first, rest = given[0], given[1:]
    return {
        "count": given[:-1],
        "device": [first.cpu(), *rest],
        "dtype": [first.double(), *rest],
        "shape": [first[..., :-1], *rest],
    }


def tuples(found):
    return found if isinstance(found, tuple) else (found,)


def check(folder, golden, eps):
    native = kiln_torch.load(folder)
    known = [[]] if golden else sizes(native.plan)
    return max(check_sizes(folder, native, golden, eps, symbols) for symbols in known)


def check_sizes(folder, native, golden, eps, symbols):
    plan = native.plan
    wanted = [each for each in plan.inputs if each.kind != "constant"]
    known = load(golden) if golden else {}
    values = [known[each.name] for each in wanted] if golden else random_inputs(wanted, symbols)
    given = [laid_out(numbers, each, symbols) for numbers, each in zip(values, wanted)]
    told = {
        "artifact": folder.name,
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "kernels": len(plan.kernels),
        "symbols": symbols,
    }
    with torch.no_grad():
        if golden:
            expected = [known[each.name] for each in plan.outputs]
        else:
            kind = given[-1].dtype
            expected = [block(given, eps, torch.float64)]
            told["eager_error"] = errors(block(given, eps, kind), expected[0])[0]
            told["micros_eager"] = micros(lambda: block(given, eps, kind))
        first = tuples(native(*given))
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            second = tuples(native(*given))
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            third = tuples(native(*given))
        graph.replay()
        bound = native.bind(*given[:-1])
        fourth = tuples(bound(given[-1]))
        graphed = bound.graphed(torch.zeros_like(given[-1]))
        fifth = tuples(graphed(given[-1]))
        torch.cuda.synchronize()
        told["errors"] = [max(errors(o, e)) for o, e in zip(first, expected)]
        told["limits"] = [LIMITS[NAMES[each.dtype]] for each in plan.outputs]
        told["streams_equal"] = all(map(torch.equal, first, second))
        told["graph_equal"] = all(map(torch.equal, first, third))
        refused = [is_refused(native, tensors) for tensors in wrong(given).values()]
        told["bound_equal"] = all(map(torch.equal, first, fourth))
        told["graphed_equal"] = all(map(torch.equal, first, fifth))
        told["wrong_inputs_refused"] = all(refused)
        told["micros"] = micros(lambda: native(*given))
        told["micros_bound"] = micros(lambda: bound(given[-1]))
        told["micros_graph"] = micros(graph.replay)
    within = len(first) == len(expected) and all(
        error < limit for error, limit in zip(told["errors"], told["limits"])
    )
    flags = ("streams_equal", "graph_equal", "bound_equal", "graphed_equal")
    told["ok"] = within and told["wrong_inputs_refused"] and all(told[flag] for flag in flags)
    print(json.dumps(told), flush=True)
    return 0 if told["ok"] else 1


def guarded(folder, golden, eps):
    """One broken artifact must not hide the others."""
    try:
        return check(folder, golden, eps)
    except Exception as failure:
        told = {"artifact": folder.name, "ok": False, "failed": repr(failure)}
        print(json.dumps(told), flush=True)
        traceback.print_exc()
        return 2


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("artifacts", nargs="+", metavar="DIR[=GOLDEN]")
    parser.add_argument("--eps", type=float, default=1e-6)
    args = parser.parse_args()
    worst = 0
    for artifact in args.artifacts:
        folder, _, golden = artifact.partition("=")
        worst = max(worst, guarded(Path(folder), golden, args.eps))
    sys.exit(worst)


if __name__ == "__main__":
    main()
