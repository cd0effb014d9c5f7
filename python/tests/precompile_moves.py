"""What can move between the process that compiled and another one, as text for the program."""

from __future__ import annotations

from precompile_processes import CLOSED

PATCHED = {
    "function of a module": ("import math; real = math.sqrt", "math.sqrt"),
    "builtin": ("import builtins; real = builtins.divmod", "builtins.divmod"),
    "function of torch": ("real = torch.nn.functional.gelu", "torch.nn.functional.gelu"),
    "method of torch": ("real = torch.nn.Dropout.forward", "torch.nn.Dropout.forward"),
    "setting of Inductor": (
        "import torch._inductor.config as inductor; real = inductor.max_fusion_size",
        "inductor.max_fusion_size",
    ),
    "setting of Dynamo": (
        "import torch._dynamo.config as dynamo; real = dynamo.specialize_float",
        "dynamo.specialize_float",
    ),
}
UNDO = {name: f"{where} = real" for name, (_, where) in PATCHED.items()} | {
    "deterministic": "torch.use_deterministic_algorithms(False)",
    # torch 2.15 guards what this sets, and 'highest' sets other values than a process begins with.
    "precision": """
torch.set_float32_matmul_precision('highest')
for each in (torch.backends.cuda.matmul, getattr(torch.backends.mkldnn, 'matmul', None)):
    if hasattr(each, 'fp32_precision'):
        each.fp32_precision = 'none'
""",
    "default device": "torch.set_default_device(None)",
}
# What moved, and how: before `torch.compile`, or between that and the first call.
BEFORE_COMPILE = {
    "shape": "inputs = (torch.ones(3, 4),)",
    "dtype": "target.double(); inputs = (inputs[0].double(),)",
    "attribute": "target.act.power = 3",
    "global": "traced.SCALE = 5.0",
    "global of another file": "import helpers; helpers.FACTOR = 4",
    "default of a function": "traced.scaled.__defaults__ = (4.0,)",
    "function of a module": "math.sqrt = lambda value: 3.0",
    "builtin": "builtins.divmod = lambda a, b: (9, 9)",
    "global function": "traced.scaled = lambda x: x * 7",
    "function of torch": "torch.nn.functional.gelu = torch.nn.functional.relu",
    "method": "traced.Act.forward = lambda self, x: x * 2",
    "method of torch": "torch.nn.Dropout.forward = lambda self, x: x * 3",
    "method of an object": "target.act.forward = lambda x: x * 2",
    "another layer": "target.act = torch.nn.ReLU()",
    "grad mode": "contexts = []",
    "training mode": "target.train()",
    "deterministic": "torch.use_deterministic_algorithms(True)",
    "precision": "torch.set_float32_matmul_precision('high')",
    "setting of Inductor": "inductor.max_fusion_size = 8",
    "setting of Dynamo": "dynamo.specialize_float = not real",
    "option": "options = {'dynamic': True}",
    "cell": "target = traced.closed(3.0)",
    "object in a cell": "target = traced.closed(2.0, traced.Plain(4.0))",
    "method of a plain object": f"traced.Plain.apply = lambda self, x: x - 1; {CLOSED}",
    "default of an inlined function": f"traced.offset.__defaults__ = (6.0,); {CLOSED}",
}
BEFORE_CALL = {
    "dtype": "target.double(); inputs = (inputs[0].double(),)",
    "threads": "torch.set_num_threads(2)",
    "attribute": "target.act.power = 3",
    "global": "traced.SCALE = 5.0",
    "global of another file": "import helpers; helpers.FACTOR = 4",
    "global function": "traced.scaled = lambda x: x * 7",
    "function of a module": "math.sqrt = lambda value: 3.0",
    "setting of Inductor": "inductor.max_fusion_size = 8",
    # The last one: torch 2.15 does not take it back as it was.
    "default device": "torch.set_default_device('cpu')",
}
