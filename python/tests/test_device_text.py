"""Code that Inductor generated for one GPU, moved to another.

``inductor_cuda1.txt`` is what torch 2.11 generated on an H100 for a model of ours on
cuda:1 (embedding, layer norm, GELU, sort, scatter, random numbers).
``inductor215_cuda1.txt`` is what torch 2.15 generated for a smaller one on a machine
without a GPU, where it was told what a driver says of an H100. In both the folder's
name in comments is replaced.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytest.importorskip("torch")

from kiln_torch.device_text import Refused, moved

pytestmark = pytest.mark.torch

HERE = Path(__file__).parent
# Each with the number of its Triton kernels.
RECORDED = {"inductor_cuda1.txt": 7, "inductor215_cuda1.txt": 4}
# Everything that says which GPU it is, found without the parser.
SAID = re.compile(
    r"cuda:(\d+)|index=(\d+)|_DeviceGuard\((\d+)\)|set_device\((\d+)\)|_stream\((\d+)\)"
    r"|default_generators\[(\d+)\]|stream(\d+)"
)
# A standalone artifact has its tuning block as a string that is a statement.
SMALL = '''"""
Compile-time auto-tuning block:
with torch.cuda._DeviceGuard(1):
    stream1 = get_raw_stream(1)
    x = rand_strided((4,), (1,), device='cuda:1', dtype=torch.float32)
"""
import torch
from torch import device
from torch._C import _cuda_getCurrentRawStream as get_raw_stream
# Said twice: cuda:1
kernel = async_compile.triton('kernel', {quotes}
import triton
@triton_heuristics.pointwise(
    triton_meta={{'device': DeviceProperties(type='cuda', index=1, cc=90), 'constants': {{}}}},
)
@triton.jit
def kernel(x):
    "{inside}"
{quotes}, device_str='cuda')
def call(args):
    with torch.cuda._DeviceGuard(1):
        torch.cuda.set_device(1)
        stream1 = get_raw_stream(1)
        kernel.run(x, 1, stream=stream1)
        y = torch.ops.aten.rand.default([1], device=device(type='cuda', index=1), pin_memory=False)
        z = torch.ops.aten.zeros.default([1], device=device(type='cpu'))
        state = torch.cuda.default_generators[1].graphsafe_get_state()
        torch.cuda.synchronize()
    return (y, z, 1)
'''


def said(text: str) -> set[str]:
    return {next(filter(None, found)) for found in SAID.findall(text)}


def small(inside: str = "adds", quotes: str = "'''") -> str:
    return SMALL.format(inside=inside, quotes=quotes)


@pytest.mark.parametrize("name", RECORDED)
def test_recorded_code_moves_there_and_back(name: str) -> None:
    recorded = (HERE / name).read_text()
    assert said(recorded) == {"1"}
    for index in (0, 3, 11):
        there, kernels = moved(recorded, index)
        assert said(there) == {str(index)}
        assert len(kernels) == RECORDED[name]
        for old, new in kernels.items():
            assert old in recorded
            assert new in there
            assert said(new) == {str(index)}
        back, _ = moved(there, 1)
        assert back == recorded
    # Nothing but the index: with that masked they are one.
    masked = [SAID.sub("GPU", text) for text in (recorded, there)]
    assert masked[0] == masked[1]


def test_code_that_is_there_already_stays() -> None:
    there, kernels = moved(small(), 1)
    assert there == small()
    assert [old == new for old, new in kernels.items()] == [True]
    assert moved("x = 1\n", 5) == ("x = 1\n", {})


def test_every_way_in_which_a_gpu_is_named() -> None:
    there, kernels = moved(small(), 2)
    assert said(there) == {"2"}
    assert len(kernels) == 1
    # Numbers that are no GPU stay: a size, a kernel's grid, a result.
    assert "kernel.run(x, 1, stream=stream2)" in there
    assert "return (y, z, 1)" in there
    assert "rand.default([1]," in there


ANY = """
from torch._C import _cuda_getCurrentRawStream as get_raw_stream
k = async_compile.triton('k', 'DeviceProperties(type="cuda", index=None)', device_str='cuda')
def call(args):
    _coor_device_idx = {current}
    with torch.cuda._DeviceGuard(_coor_device_idx):
        torch.cuda.set_device(_coor_device_idx)
        raw_stream = get_raw_stream(_coor_device_idx)
        k.run(x, stream=raw_stream)
        return torch.ops.aten.randperm.default(7, device=device(type='cuda'))
"""


def test_code_for_any_gpu_stays() -> None:
    """As torch 2.15 generates it under `compile_on_one_rank`."""
    code = ANY.format(current="torch.cuda.current_device()")
    assert moved(code, 3)[0] == code
    for other in ("1", "torch.cuda.device_count()", "torch.cuda.current_device(0)", "args[0]"):
        with pytest.raises(Refused):
            moved(ANY.format(current=other), 3)


@pytest.mark.parametrize("quotes", ["'''", '"""'])
def test_a_kernel_whose_text_is_escaped(quotes: str) -> None:
    text = small(inside="tab \\\\t and é", quotes=quotes)
    there, kernels = moved(text, 0)
    ((old, new),) = kernels.items()
    assert "tab \\t and é" in old
    assert new == old.replace("index=1", "index=0")
    names: dict[str, str] = {}

    class Compile:
        def triton(self, name: str, source: str, device_str: str) -> None:
            names[name + device_str] = source

    line = there[there.index("kernel = ") : there.index("def call")]
    exec(line, {"async_compile": Compile()})  # noqa: S102 - what runs is what was said
    assert names == {"kernelcuda": new}


@pytest.mark.parametrize(
    "line",
    [
        # Another GPU, each way.
        "torch.cuda.set_device(0)",
        "stream2 = 5",
        "d = device(type='cuda', index=3)",
        "d = torch.device('cuda', 3)",
        "x = y.to('cuda:2')",
        "g = torch.cuda.default_generators[0]",
        "k2 = async_compile.triton('k', 'DeviceProperties(type=\"cuda\", index=4)')",
        # One that nobody can tell.
        "torch.cuda.set_device(n)",
        "torch.cuda.set_device(True)",
        "get_raw_stream(device=1)",
        "d = device(type='cuda', index=-1)",
        "d = device(type=kind, index=1)",
        "x = f'cuda:{n}'",
        "x = 'runs on cuda:1'",
        "g = torch.cuda.default_generators[n]",
        "k2 = async_compile.triton('k', source)",
        # Ways that the code has not today.
        "s = torch.cuda.Stream(1)",
        "torch.cuda.synchronize(1)",
        "f = torch.cuda.set_device",
        "f = get_raw_stream",
        "torch.accelerator.set_device_index(1)",
        "x = empty(device=1)",
        "meta = {'device_index': 1}",
        "from torch.cuda import set_device",
        "import torch.cuda.streams",
        "from torch._C import _cuda_setDevice",
        "k2 = async_compile.cutlass('k', 'x')",
        "k2 = async_compile.triton('k', 'no python (')",
        "no python (",
        "\x00",
    ],
)
def test_refused(line: str) -> None:
    moved(small(), 0)
    with pytest.raises(Refused):
        moved(small() + line + "\n", 0)


def test_deep_nesting_is_refused_and_no_crash() -> None:
    with pytest.raises(Refused):
        moved(small() + "(" * 5000 + ")" * 5000, 0)
