#!/usr/bin/env python3
"""Loads compiled artifacts with kiln_torch and judges them on torch tensors.

usage: PYTHONPATH=python check_load.py DIR[=GOLDEN] ... [--eps 1e-6]

DIR is what `kiln compile -o DIR` wrote. Without GOLDEN the artifact must be the
fixture block: random inputs go through `kiln_torch.load(DIR)`, and through
PyTorch in float64 and in eager mode. With GOLDEN (a safetensors file with `in0`,
..., `out0`, ...) any artifact is judged. Also checked: another stream, a CUDA
graph, and that wrong inputs are refused. One line of JSON for each artifact.
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


def random_inputs(given):
    """The fixture block's, of the plan's shapes."""
    if len(given) != 5:
        raise ValueError(f"{len(given)} inputs: not the fixture block; give DIR=GOLDEN")
    torch.manual_seed(3)
    tensors = []
    for wanted in given:
        scale = wanted.shape[-1] ** -0.5 if len(wanted.shape) == 2 else 1.0
        value = torch.randn(wanted.shape, dtype=torch.float64) * scale
        value = 1.0 + 0.2 * value if len(wanted.shape) == 1 else value
        tensors.append(value.to(TYPES[NAMES[wanted.dtype]]))
    return tensors


def laid_out(value, wanted):
    """On the GPU, with the plan's strides."""
    tensor = torch.empty_strided(wanted.shape, wanted.strides, dtype=value.dtype, device="cuda")
    return tensor.copy_(value)


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
    plan = native.plan
    wanted = [each for each in plan.inputs if each.kind != "constant"]
    known = load(golden) if golden else {}
    values = [known[each.name] for each in wanted] if golden else random_inputs(wanted)
    given = [laid_out(value, each) for value, each in zip(values, wanted)]
    told = {
        "artifact": folder.name,
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "kernels": len(plan.kernels),
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
        torch.cuda.synchronize()
        told["errors"] = [max(errors(o, e)) for o, e in zip(first, expected)]
        told["limits"] = [LIMITS[NAMES[each.dtype]] for each in plan.outputs]
        told["streams_equal"] = all(map(torch.equal, first, second))
        told["graph_equal"] = all(map(torch.equal, first, third))
        refused = [is_refused(native, tensors) for tensors in wrong(given).values()]
        told["wrong_inputs_refused"] = all(refused)
        told["micros"] = micros(lambda: native(*given))
        told["micros_graph"] = micros(graph.replay)
    within = len(first) == len(expected) and all(
        error < limit for error, limit in zip(told["errors"], told["limits"])
    )
    flags = ("streams_equal", "graph_equal", "wrong_inputs_refused")
    told["ok"] = within and all(told[flag] for flag in flags)
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
