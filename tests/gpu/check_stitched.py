#!/usr/bin/env python3
"""A stitched whole through `kiln_torch.load`, against the same graph compiled in full.

usage: PYTHONPATH=python:tests/gpu check_stitched.py DIR ...

DIR has `full` and `stitched`, as the GPU test `stitched` leaves them in
KILN_STITCHED_OUT. Both run on the same random inputs, launch by launch and as a
CUDA graph (`graphed`), in turns; symbolic sizes are tried at several values. One
line of JSON for each size. Exits 1 if something does not hold.
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path

import kiln_torch
import torch
from check_block import NAMES, TYPES
from check_load import laid_out, sizes, tuples
from kiln_torch.sizes import value

TURNS, RUNS = 7, 40
LIMITS = {"f32": 1e-5, "f16": 1e-2, "bf16": 2e-2}


def inputs(plan, symbols):
    """Random ones, laid out as the plan wants them; whole numbers are positions."""
    torch.manual_seed(5)
    made = []
    for wanted in (plan.inputs[at] for at in plan.given):
        shape = [value(each, symbols) for each in wanted.shape]
        dtype = TYPES[NAMES[wanted.dtype]] if wanted.dtype in NAMES else torch.int64
        if dtype.is_floating_point:
            weight = wanted.kind == "parameter" and len(shape) > 1
            numbers = torch.rand(shape, device="cuda") * 2 - 1
            numbers = numbers * (shape[-1] ** -0.5 if weight else 1.0)
        else:
            numbers = torch.randint(0, 2, shape, device="cuda")
        made.append(laid_out(numbers.to(dtype), wanted, symbols))
    return made


def micros(run):
    """One replay: the median of several between two events each."""
    taken = []
    for _ in range(RUNS):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        run()
        end.record()
        end.synchronize()
        taken.append(start.elapsed_time(end) * 1000)
    return statistics.median(taken)


def difference(found, expected):
    worst = 0.0
    for mine, theirs in zip(found, expected):
        if not torch.equal(mine, theirs):
            mine, theirs = mine.double(), theirs.double()
            worst = max(worst, ((mine - theirs).norm() / theirs.norm()).item())
    return worst


def check(folder, symbols):
    full, stitched = (kiln_torch.load(folder / name) for name in ("full", "stitched"))
    given = inputs(full.plan, symbols)
    expected, found = tuples(full(*given)), tuples(stitched(*given))
    graphs = [full.graphed(*given), stitched.graphed(*given)]
    replayed = [tuples(graph(*graph.inputs)) for graph in graphs]
    torch.cuda.synchronize()
    differs = difference(found, expected)
    times = [[], []]
    for _ in range(TURNS):
        for graph, taken in zip(graphs, times):
            taken.append(micros(lambda graph=graph: graph(*graph.inputs)))
    medians = [statistics.median(taken) for taken in times]
    refused = False
    try:
        stitched(*given[:-1])
    except TypeError:
        refused = True
    limit = LIMITS[full.plan.outputs[0].dtype]
    told = {
        "folder": folder.name,
        "device": torch.cuda.get_device_name(),
        "symbols": symbols,
        "kernels": [len(full.plan.kernels), len(stitched.plan.kernels)],
        "relative_difference": differs,
        "graph_equal": all(map(torch.equal, found, replayed[1])),
        "wrong_inputs_refused": refused,
        "graphed_us": [
            [round(each, 1) for each in (min(t), m, max(t))] for t, m in zip(times, medians)
        ],
        "ratio": round(medians[1] / medians[0], 4),
    }
    told["ok"] = told["graph_equal"] and refused and differs <= limit
    print(json.dumps(told), flush=True)
    return told["ok"]


def main():
    if len(sys.argv) < 2:
        print(__doc__, file=sys.stderr)
        return 2
    good = True
    with torch.no_grad():
        for folder in map(Path, sys.argv[1:]):
            plan = kiln_torch.load(folder / "full").plan
            for symbols in sizes(plan):
                good = check(folder, symbols) and good
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
