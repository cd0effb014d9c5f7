"""A node's Inductor worker, and the loader of what it makes.

A node runs this file in an interpreter that has torch, and speaks to it through
stdin and stdout (see ``proto/kiln/v1/worker.proto``). It needs torch and the
standard library, nothing else: the messages are read and written by hand.

Invariants: one process compiles one program, in folders that the node gave it
and removes; nothing that came with a request is unpickled or evaluated, and no
weight is read: parameters are inputs of the artifact.

To load an artifact elsewhere: ``kiln_torch.worker.load_artifact(folder)``.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

STANDALONE = "inductor-standalone"
AHEAD_OF_TIME = "inductor"
FORMAT = "kiln-inductor-1"
META = "meta.json"
CONSTANTS = "constants.pt"
MODULES = {STANDALONE: "artifact.bin", AHEAD_OF_TIME: "model.pt2"}

LARGEST_MESSAGE = 1 << 30
# Failures are replicated to all nodes: what a compiler says is cut to this.
LONGEST_LOG = 16 << 10

# kiln.v1.FailureKind
COMPILE_ERROR, UNSUPPORTED_OP, INVALID_INPUT, INCOMPATIBLE = 1, 2, 3, 5
TOOLCHAIN_MISSING, OUT_OF_MEMORY = 7, 8


class Refused(Exception):
    """A compile without an artifact: the kind is what the caller should do about it."""

    def __init__(self, kind: int, message: str) -> None:
        """Kind, and what to tell people."""
        super().__init__(message)
        self.kind = kind


# --- messages: the part of protobuf's wire format that worker.proto uses -------------------


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def encode(*fields: tuple[int, int | float | str | bytes]) -> bytes:
    """A message of (number, value): ints as varints, floats as doubles, the rest by length."""
    import struct

    out = bytearray()
    for number, value in fields:
        if isinstance(value, float):
            out += _varint(number << 3 | 1) + struct.pack("<d", value)
        elif isinstance(value, int):
            out += _varint(number << 3) + _varint(value)
        else:
            data = value.encode() if isinstance(value, str) else value
            out += _varint(number << 3 | 2) + _varint(len(data)) + data
    return bytes(out)


def decode(message: bytes | memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Numbers and values of a message's fields; fixed-width ones are not among ours."""
    rest = memoryview(message)

    def varint() -> int:
        nonlocal rest
        value = shift = 0
        while True:
            if not rest or shift > 63:
                raise ValueError("a varint without end")
            byte, rest = rest[0], rest[1:]
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7

    while rest:
        tag = varint()
        if tag & 7 == 0:
            yield tag >> 3, varint()
        elif tag & 7 == 2:
            size = varint()
            if size > len(rest):
                raise ValueError("a field beyond its message")
            value, rest = rest[:size], rest[size:]
            yield tag >> 3, value
        else:
            raise ValueError(f"wire type {tag & 7} is not expected")


def read_frame(stream: BinaryIO) -> bytes | None:
    """One message; None where the stream ended."""
    head = stream.read(4)
    if len(head) < 4:
        return None
    size = int.from_bytes(head, "big")
    if size > LARGEST_MESSAGE:
        raise ValueError(f"a message of {size} bytes")
    body = stream.read(size)
    return body if len(body) == size else None


def write_frame(stream: BinaryIO, message: bytes) -> None:
    """Write one message."""
    stream.write(len(message).to_bytes(4, "big") + message)
    stream.flush()


@dataclass
class Job:
    """kiln.v1.WorkerCompile."""

    compiler: str = STANDALONE
    archive: bytes = b""
    options: dict[str, Any] = field(default_factory=dict)
    runtime_shape: int | None = None
    device: str = "cpu"
    compute: int = 0
    memory_bytes: int = 0
    cpu_seconds: int = 0

    @classmethod
    def parse(cls, message: bytes) -> Job:
        """Read the message."""
        job = cls()
        for number, value in decode(message):
            if isinstance(value, int):
                name = {4: "runtime_shape", 6: "compute", 7: "memory_bytes", 8: "cpu_seconds"}
                setattr(job, name[number], value)
            elif number == 3:
                option = {n: bytes(v).decode() for n, v in decode(value) if not isinstance(v, int)}
                job.options[option.get(1, "")] = json.loads(option.get(2, "null"))
            elif number == 2:
                job.archive = bytes(value)
            else:
                setattr(job, {1: "compiler", 5: "device"}[number], bytes(value).decode())
        return job


# --- the toolchain --------------------------------------------------------------------------


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def _said(*command: str) -> str:
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def config_digest() -> str:
    """Inductor's defaults, without what only says where and with how many threads it works."""
    from torch._inductor import config

    local = re.compile(r"thread|path|_dir|log|worker|cache")
    portable = config.save_config_portable()
    kept = {name: repr(value) for name, value in portable.items() if not local.search(name)}
    return _digest(json.dumps(kept, sort_keys=True).encode())


def versions() -> dict[str, str]:
    """Everything of this machine that can change Inductor's output, by name."""
    import torch
    from torch._inductor.codecache import CacheBase, torch_key

    found = {
        "torch": torch.__version__,
        "torch_key": _digest(torch_key()),
        "python": f"{sys.version_info.major}.{sys.version_info.minor}",
        "cuda": torch.version.cuda or "none",
        "inductor_defaults": config_digest(),
    }
    triton = CacheBase.get_system().get("version", {}).get("triton")
    release = getattr(sys.modules.get("triton"), "__version__", "")
    found["triton"] = f"{release}-{_digest(str(triton).encode())}" if triton else "none"
    try:
        found["cudnn"] = str(torch.backends.cudnn.version() or "none")
    except RuntimeError:
        found["cudnn"] = "none"
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name(0)
    found.update(_cpu())
    return found


def _cpu() -> dict[str, str]:
    """Inductor builds C++ with -march=native: what that means here is part of the output."""
    from torch._inductor import config
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.cpu_vec_isa import pick_vec_isa

    try:
        compiler = get_cpp_compiler()
    except Exception:  # no compiler, so what needs one is refused
        return {"cxx": "none", "isa": "none"}
    release = _said(compiler, "--version").partition("\n")[0] or "unknown"
    macros = _said(compiler, "-march=native", "-dM", "-E", "-x", "c++", os.devnull)
    if "__AVX2__" in macros:
        # It builds for this CPU: three test programs that would show it take ten seconds.
        config.cpp.vec_isa_ok = True
    isa = str(pick_vec_isa()).strip() or "none"
    target = _said(compiler, "-march=native", "-Q", "--help=target")
    named = re.search(r"-march=\s+(\S+)", target)
    march = f"{named[1] if named else 'native'}-{_digest((macros + target).encode())}"
    return {"cxx": release, "isa": isa, "march": march}


def compute_capability() -> int:
    """Of the first GPU, times ten; 0 without one."""
    import torch

    if not torch.cuda.is_available():
        return 0
    major, minor = torch.cuda.get_device_capability(0)
    return major * 10 + minor


def compilers() -> list[str]:
    """Names of the compilers that this torch has."""
    import torch._inductor

    has = hasattr(torch._inductor, "standalone_compile")
    return [AHEAD_OF_TIME, STANDALONE] if has else [AHEAD_OF_TIME]


def ready() -> bytes:
    """kiln.v1.WorkerReady."""
    pairs = sorted(versions().items())
    tools = [(2, encode((1, name), (2, value))) for name, value in pairs]
    known = [(1, encode((1, name), *tools)) for name in compilers()]
    return encode(*known, (2, compute_capability()))


# --- options --------------------------------------------------------------------------------

# Options of text are names of files and commands, but for these.
TEXTS = re.compile(r"^(max_autotune_\w+_(backends|search_space)|cpu_backend|cuda_backend)$")
# What the worker itself decides, and what only writes files.
OWN = re.compile(
    r"^(compile_threads|force_disable_caches|worker\w*|trace\..*|aot_inductor\.package\w*)$"
    r"|(^|[._])(cache|caches|debug|log|dump|profile|remote|subprocess?)([._]|$)"
)


def check_options(options: Mapping[str, Any]) -> None:
    """Refuses what Inductor has not, or what is of another type."""
    from torch._inductor import config

    defaults = config.get_config_copy()
    for name, value in options.items():
        if name not in defaults:
            raise Refused(INVALID_INPUT, f"Inductor has no option {name!r}")
        if OWN.search(name):
            raise Refused(INVALID_INPUT, f"option {name!r} is the node's to set")
        default = defaults.get(name)
        if isinstance(value, str) and TEXTS.match(name):
            continue
        wanted: tuple[type, ...] = (bool, int, float)
        if isinstance(default, bool):
            wanted = (bool,)
        elif isinstance(default, (int, float)):
            wanted = (int,) if isinstance(default, int) else (int, float)
        fits = isinstance(value, wanted) and (bool in wanted or not isinstance(value, bool))
        if not fits or isinstance(default, (str, list, tuple, dict, set)) or callable(default):
            names = " or ".join(t.__name__ for t in wanted)
            raise Refused(
                INVALID_INPUT,
                f"option {name!r} cannot be {json.dumps(value)}: options are switches and "
                f"numbers, this one {names} (default {default!r})",
            )


# --- the program ----------------------------------------------------------------------------

# Sizes are expressions that sympy evaluates: symbols, numbers and these words alone.
_SYMBOL = re.compile(r"'?\b[a-z]{1,2}\d+\b'?")
_WORDS = frozenset(
    [
        "Symbol",
        "Integer",
        "Rational",
        "Add",
        "Mul",
        "Pow",
        "Max",
        "Min",
        "Mod",
        "PythonMod",
        "FloorDiv",
        "CeilDiv",
        "CleanDiv",
        "ModularIndexing",
        "Where",
        "Eq",
        "Ne",
        "Lt",
        "Le",
        "Gt",
        "Ge",
        "And",
        "Or",
        "Not",
        "Identity",
        "ToFloat",
        "TruncToInt",
        "FloorToInt",
        "CeilToInt",
        "IntTrueDiv",
        "FloatTrueDiv",
        "PowByNatural",
        "oo",
        "int_oo",
        "True",
        "False",
        "integer",
        "positive",
        "negative",
        "nonnegative",
        "nonzero",
        "real",
        "zero",
    ]
)
_EXPRESSION = re.compile(r"[\w\s+\-*/%(),<>=!&|~]*")


def check_expression(text: str) -> None:
    """Refuse a size that is not a plain expression."""
    rest = _SYMBOL.sub(" ", text)
    words = re.findall(r"[A-Za-z_]\w*", rest)
    plain = len(text) <= 4096 and _EXPRESSION.fullmatch(rest)
    if not plain or not all(word in _WORDS for word in words):
        raise Refused(INVALID_INPUT, f"{text[:100]!r} is no size that torch.export writes")


@dataclass
class Program:
    """A graph whose parameters, buffers and constants are inputs."""

    module: Any
    inputs: list[dict[str, Any]]
    outputs: list[dict[str, Any]]
    fakes: list[Any]
    constants: dict[str, Any]


def _visit(node: Any, device: str) -> Any:
    """Checks a program's JSON, and moves it to `device`."""
    if isinstance(node, list):
        return [_visit(item, device) for item in node]
    if not isinstance(node, dict):
        return node
    if set(node) == {"type", "index"} and node["type"] in ("cpu", "cuda"):
        return {"type": device, "index": 0 if device == "cuda" else None}
    if isinstance(node.get("expr_str"), str):
        check_expression(node["expr_str"])
    return {name: _visit(value, device) for name, value in node.items()}


def open_archive(archive: bytes) -> tuple[zipfile.ZipFile, str, str]:
    """The archive, the folder of its entries, and the name of its one model."""
    try:
        opened = zipfile.ZipFile(io.BytesIO(archive))
        found = re.compile(r"^(.*)models/([^/]+)\.json$")
        models = [m for m in map(found.match, opened.namelist()) if m]
    except zipfile.BadZipFile as e:
        raise Refused(INVALID_INPUT, f"not a .pt2 archive: {e}") from e
    if len(models) != 1:
        raise Refused(INVALID_INPUT, f"{len(models)} models in the archive; give one")
    return opened, models[0][1], models[0][2]


def read_program(archive: bytes, device: str) -> Program:
    """Reads the graph. torch.export.load would unpickle what the archive says is pickled."""
    from torch._export.serde import schema, serialize
    from torch.fx.experimental.symbolic_shapes import ValueRanges
    from torch.utils._sympy.numbers import int_oo

    opened, prefix, model = open_archive(archive)
    tree = json.loads(opened.read(f"{prefix}models/{model}.json"))
    if tree.get("schema_version", {}).get("major") != schema.SCHEMA_VERSION[0]:
        raise Refused(INCOMPATIBLE, f"export schema {tree.get('schema_version')}: not this torch's")
    tree = _visit(tree, device)
    tree["guards_code"] = []
    known = {f.name for f in schema.ExportedProgram.__dataclass_fields__.values()}
    text = json.dumps({name: value for name, value in tree.items() if name in known})
    parsed = serialize._bytes_to_dataclass(schema.ExportedProgram, text.encode())
    limit = serialize._int_to_sympy_int
    ranges = {
        name: ValueRanges(limit(r.min_val, -int_oo), limit(r.max_val, int_oo))
        for name, r in parsed.range_constraints.items()
    }
    constants = read_constants(opened, prefix, model, device)
    try:
        read = serialize.GraphModuleDeserializer().deserialize(
            parsed.graph_module, {}, dict(constants), None, ranges
        )
    except Refused:
        raise
    except Exception as e:
        raise Refused(UNSUPPORTED_OP, f"torch here cannot read this program: {_last(e)}") from e
    module = read.graph_module
    holders = [node for node in module.graph.nodes if node.op == "placeholder"]
    for node in module.graph.nodes:
        # Where standalone_compile of torch 2.11 looks for the shapes' environment.
        if "val" in node.meta:
            node.meta.setdefault("example_value", node.meta["val"])

    def kind(spec: Any) -> str:
        return spec.kind.name.lower()

    inputs = [
        {"name": node.name, "kind": kind(spec), "target": spec.target}
        for node, spec in zip(holders, read.signature.input_specs, strict=True)
    ]
    outputs = [
        {"name": getattr(spec.arg, "name", None), "kind": kind(spec), "target": spec.target}
        for spec in read.signature.output_specs
    ]
    fakes = [node.meta.get("val") for node in holders]
    for wanted, fake in zip(inputs, fakes):
        describe(wanted, fake)
    forget_expressions(fakes)
    used = {i["target"] for i in inputs if i["kind"] == "constant_tensor"}
    missing = sorted(used - constants.keys())
    if missing:
        raise Refused(INVALID_INPUT, f"the data of constants {missing} is not in the archive")
    constants = {name: constants[name] for name in sorted(used)}
    return Program(module, inputs, outputs, fakes, constants)


def forget_expressions(fakes: Sequence[Any]) -> None:
    """Drop sample values of sizes like ``24*s27``.

    torch 2.11 reads them back, and its Inductor then stumbles over a symbol that is none.
    """
    import sympy
    import torch

    dims = [d for fake in fakes if isinstance(fake, torch.Tensor) for d in fake.shape]
    for dim in dims:
        if isinstance(dim, torch.SymInt):
            samples = getattr(dim.node.shape_env, "backed_var_to_val", {})
            for name in [name for name in samples if not isinstance(name, sympy.Symbol)]:
                del samples[name]


def describe(wanted: dict[str, Any], fake: Any) -> None:
    """Add what an input looks like to its description."""
    import torch

    if isinstance(fake, torch.Tensor):
        wanted["dtype"] = str(fake.dtype).removeprefix("torch.")
        wanted["shape"] = [s if isinstance(s, int) else str(s) for s in fake.shape]
        wanted["strides"] = [s if isinstance(s, int) else str(s) for s in fake.stride()]
    elif isinstance(fake, (int, torch.SymInt)) and not isinstance(fake, bool):
        wanted["dtype"] = "int"
    else:
        what = (
            f"input {wanted['name']!r} is a {type(fake).__name__}: only tensors and whole numbers"
        )
        raise Refused(UNSUPPORTED_OP, f"{what} are handled")


def read_constants(opened: zipfile.ZipFile, prefix: str, model: str, device: str) -> dict[str, Any]:
    """Tensors baked into the program. Those that are pickled are left out, unread."""
    import torch
    from torch._export.serde import serialize

    try:
        listed = json.loads(opened.read(f"{prefix}data/constants/{model}_constants_config.json"))
    except KeyError:
        return {}
    found = {}
    for name, entry in listed.get("config", {}).items():
        meta = entry.get("tensor_meta")
        if entry.get("use_pickle") or not meta or "/" in entry["path_name"]:
            continue
        dtype = serialize._SERIALIZE_TO_TORCH_DTYPE[meta["dtype"]]
        sizes = [size["as_int"] for size in meta["sizes"]]
        strides = [stride["as_int"] for stride in meta["strides"]]
        data = bytearray(opened.read(f"{prefix}data/constants/{entry['path_name']}"))
        flat = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
        found[name] = flat.as_strided(sizes, strides).to(device)
    return found


def example_inputs(program: Program, runtime_shape: int | None) -> tuple[Sequence[Any], str]:
    """What is traced with, and how standalone_compile is to see its shapes."""
    import torch

    if runtime_shape is None:
        return program.fakes, "from_graph"
    dims = [d for f in program.fakes for d in ([f] if not hasattr(f, "shape") else f.shape)]
    symbolic = [d for d in dims if isinstance(d, torch.SymInt)]
    symbols = sorted({s for d in symbolic for s in d.node.expr.free_symbols}, key=str)
    if len(symbols) > 1:
        names = ", ".join(map(str, symbols))
        raise Refused(INVALID_INPUT, f"runtime_shape is one size, and the program has {names}")
    for symbol in symbols:
        allowed = symbolic[0].node.shape_env.var_to_range.get(symbol)
        if allowed is not None and runtime_shape not in allowed:
            why = f"runtime_shape {runtime_shape} is not in {allowed.lower}..{allowed.upper}"
            raise Refused(INVALID_INPUT, f"{why}, the exported range")

    def fixed(dim: Any) -> int:
        if isinstance(dim, torch.SymInt):
            return int(dim.node.expr.subs(dict.fromkeys(symbols, runtime_shape)))
        return dim

    def real(fake: Any) -> Any:
        if not isinstance(fake, torch.Tensor):
            return fixed(fake)
        size, stride = [fixed(s) for s in fake.shape], [fixed(s) for s in fake.stride()]
        return torch.empty_strided(size, stride, dtype=fake.dtype, device=fake.device)

    return [real(fake) for fake in program.fakes], "from_example_inputs"


# --- compiling ------------------------------------------------------------------------------


def compile_program(job: Job, folder: Path) -> dict[str, bytes]:
    """The artifact's files by path. Leaves its own traces in `folder` alone."""
    import torch

    if job.compiler not in compilers():
        raise Refused(TOOLCHAIN_MISSING, f"torch {torch.__version__} has no {job.compiler}")
    if job.device == "cuda" and compute_capability() != job.compute:
        have = compute_capability()
        what = f"a GPU of compute capability {have}" if have else "no GPU"
        raise Refused(TOOLCHAIN_MISSING, f"the request is for gpu_{job.compute}; here is {what}")
    check_options(job.options)
    program = read_program(job.archive, job.device)
    inputs, shapes = example_inputs(program, job.runtime_shape)
    if all(
        isinstance(node.op, str) and node.op != "call_function"
        for node in program.module.graph.nodes
    ):
        raise Refused(UNSUPPORTED_OP, "the program computes nothing: there is nothing to compile")
    path = folder / MODULES[job.compiler]
    run = standalone if job.compiler == STANDALONE else ahead_of_time
    # Parameters ask for gradients, and a graph for training would be compiled.
    with torch.no_grad():
        run(program, inputs, shapes, dict(job.options), path)
    guards = "" if job.runtime_shape else guards_of(program)
    files = {path.name: path.read_bytes(), META: meta(job, program, guards)}
    if program.constants:
        held = io.BytesIO()
        torch.save({name: t.cpu() for name, t in program.constants.items()}, held)
        files[CONSTANTS] = held.getvalue()
    return files


def standalone(
    program: Program, inputs: Sequence[Any], shapes: str, patches: dict[str, Any], path: Path
) -> None:
    """What ``standalone_compile`` saves, at ``path``."""
    from torch._inductor import standalone_compile

    # The artifact is made of what the compile put into Inductor's own cache.
    patches |= {"fx_graph_cache": True, "fx_graph_remote_cache": False}
    made = standalone_compile(
        program.module, list(inputs), dynamic_shapes=shapes, options={"config_patches": patches}
    )
    made.save(path=str(path), format="binary")


def ahead_of_time(
    program: Program, inputs: Sequence[Any], shapes: str, patches: dict[str, Any], path: Path
) -> None:
    """A package of AOTInductor, at ``path``."""
    import torch
    from torch._inductor.package import package_aoti

    del shapes  # the inputs say it
    if not all(isinstance(one, torch.Tensor) for one in inputs):
        raise Refused(UNSUPPORTED_OP, f"{AHEAD_OF_TIME} takes tensors alone, and one is a number")
    patches |= {"aot_inductor.package": True, "fx_graph_remote_cache": False}
    made = torch._inductor.aot_compile(program.module, tuple(inputs), options=patches)
    package_aoti(str(path), made)


def guards_of(program: Program) -> str:
    """What must hold of the inputs' sizes: the exported ranges, and what the compile added."""
    import torch

    dims = [d for f in program.fakes if isinstance(f, torch.Tensor) for d in f.shape]
    symbolic = [d for d in dims if isinstance(d, torch.SymInt)]
    if not symbolic:
        return ""
    environment = symbolic[0].node.shape_env
    return environment.produce_guards_expression(program.fakes) or ""


def meta(job: Job, program: Program, guards: str) -> bytes:
    """The artifact's description: what goes in and comes out, and how to load it."""
    import torch
    from torch._inductor.codecache import torch_key

    said = {
        "format": FORMAT,
        "compiler": job.compiler,
        "file": MODULES[job.compiler],
        "load": "kiln_torch.worker.load_artifact(FOLDER)",
        "torch": torch.__version__,
        "torch_key": _digest(torch_key()),
        "device": job.device,
        "runtime_shape": job.runtime_shape,
        "options": job.options,
        "guards": guards,
        "inputs": program.inputs,
        "outputs": program.outputs,
        "constants": sorted(program.constants),
    }
    return json.dumps(said, indent=1).encode()


def _last(error: BaseException) -> str:
    text = f"{type(error).__name__}: {error}".strip()
    return (
        text
        if len(text) <= LONGEST_LOG
        else text[: LONGEST_LOG // 2] + " … " + text[-LONGEST_LOG // 2 :]
    )


def as_refused(error: BaseException) -> Refused:
    """What a compile's exception means for the caller."""
    if isinstance(error, Refused):
        return error
    text = _last(error)
    if isinstance(error, MemoryError) or re.search(
        r"out of memory|bad_alloc|can't allocate memory|Cannot allocate memory|memory exhausted",
        text,
    ):
        return Refused(OUT_OF_MEMORY, text)
    if "InvalidCxxCompiler" in text or "No working C++ compiler" in text:
        return Refused(TOOLCHAIN_MISSING, f"{text}: install g++ or set CXX")
    return Refused(COMPILE_ERROR, f"Inductor: {text}")


# --- the worker -----------------------------------------------------------------------------


def _failed(refused: Refused) -> bytes:
    return encode((3, encode((1, refused.kind), (2, str(refused)))))


def _end_with_the_node(requests: BinaryIO) -> None:
    """Ends this process group when the node is gone; until then compiles go on."""
    while requests.read(1 << 16):
        pass
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


def serve(requests: BinaryIO, answers: BinaryIO, folder: Path) -> None:
    """One process: torch is loaded, one job is done."""
    try:
        hello = encode((1, ready()))
    except ImportError as e:
        hello = _failed(Refused(TOOLCHAIN_MISSING, f"{sys.executable} has no working torch: {e}"))
    write_frame(answers, hello)
    message = read_frame(requests)
    if message is None:
        return
    threading.Thread(target=_end_with_the_node, args=(requests,), daemon=True).start()
    began = time.monotonic()
    try:
        job = Job.parse(message)
        del message
        limit(job)
        files = compile_program(job, folder)
    except BaseException as e:  # whatever it is, the node is told
        write_frame(answers, _failed(as_refused(e)))
        return
    seconds = time.monotonic() - began
    listed = [(1, encode((1, name), (2, data))) for name, data in sorted(files.items())]
    write_frame(answers, encode((2, encode(*listed, (2, seconds)))))


def limit(job: Job) -> None:
    """Set the job's bounds on this process and on what it starts."""
    import resource

    import torch._inductor.config

    for name, most in [("DATA", job.memory_bytes), ("CPU", job.cpu_seconds)]:
        if most:
            resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if job.device == "cpu":
        # Each g++ has the memory limit of its own: one at a time.
        torch._inductor.config.compile_threads = 1


def main() -> None:
    """Takes stdin and stdout for the node alone: what a library prints goes to stderr."""
    folder = Path.cwd()
    os.environ |= {
        "HOME": str(folder),
        "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"),
        "TRITON_CACHE_DIR": str(folder / "triton"),
        # Packages that are installed beside torch have no say in what is compiled.
        "TORCH_DEVICE_BACKEND_AUTOLOAD": "0",
    }
    requests = os.fdopen(os.dup(0), "rb")
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    serve(requests, answers, folder)
    answers.flush()
    # Threads of torch must not hold up the end.
    os._exit(0)


# --- loading --------------------------------------------------------------------------------


class Loaded:
    """An artifact, ready to run. Called with its inputs in order, constants left out."""

    def __init__(
        self, run: Callable[..., Any], meta: dict[str, Any], constants: dict[str, Any]
    ) -> None:
        """Take what ``load_artifact`` read."""
        self.meta = meta
        self._run = run
        self._constants = constants
        self.inputs = [i for i in meta["inputs"] if i["target"] not in constants]

    def __call__(self, *inputs: Any) -> list[Any]:
        """Run it; the outputs in order."""
        if len(inputs) != len(self.inputs):
            names = ", ".join(i["name"] for i in self.inputs)
            raise TypeError(f"{len(inputs)} inputs for {len(self.inputs)}: {names}")
        given = iter(inputs)
        ordered = [
            self._constants[i["target"]] if i["target"] in self._constants else next(given)
            for i in self.meta["inputs"]
        ]
        if guards := self.meta["guards"]:
            from torch.fx.experimental.symbolic_shapes import ShapeEnv

            if not ShapeEnv().evaluate_guards_expression(guards, ordered):
                raise ValueError(f"the artifact is not for inputs of these sizes: {guards}")
        return list(self._run(*ordered))

    def bind(self, state: Mapping[str, Any] | Sequence[Any]) -> Callable[..., list[Any]]:
        """A function of the user's inputs alone, with parameters and buffers from `state`.

        By name, or in the graph's order. Names are those of the program that was compiled
        first: a renamed module has the same artifact, and gives its state in order.
        """
        held = [i for i in self.inputs if i["kind"] in ("parameter", "buffer")]
        if isinstance(state, Mapping):
            missing = [i["target"] for i in held if i["target"] not in state]
            if missing:
                raise KeyError(f"the state lacks {', '.join(missing)}")
            state = [state[i["target"]] for i in held]
        if len(state) != len(held):
            raise TypeError(f"{len(state)} tensors of state for {len(held)}")
        known = {i["name"]: tensor for i, tensor in zip(held, state)}
        buffers = {i["target"]: tensor for i, tensor in zip(held, state)}
        outputs = self.meta["outputs"]

        def bound(*inputs: Any) -> list[Any]:
            given = iter(inputs)
            made = self(
                *[known[i["name"]] if i["name"] in known else next(given) for i in self.inputs]
            )
            for said, value in zip(outputs, made):
                if said["kind"] == "buffer_mutation":
                    buffers[said["target"]].copy_(value)
            return [v for said, v in zip(outputs, made) if said["kind"] == "user_output"]

        return bound


def load_artifact(folder: str | os.PathLike[str]) -> Loaded:
    """Loads what a node's Inductor made, in any process and folder with the same torch.

    The files are code: load only what came from a node through a checked manifest.
    """
    import torch

    folder = Path(folder)
    meta = json.loads((folder / META).read_text())
    if meta.get("format") != FORMAT:
        raise ValueError(f"{folder} has no artifact of {FORMAT}")
    if meta["torch"] != torch.__version__:
        raise RuntimeError(f"made by torch {meta['torch']}, and this is {torch.__version__}")
    constants = {}
    if meta["constants"]:
        held = torch.load(folder / CONSTANTS, weights_only=True)
        constants = {name: held[name].to(meta["device"]) for name in meta["constants"]}
    path = str(folder / meta["file"])
    if meta["compiler"] == STANDALONE:
        from torch._inductor.standalone_compile import CompiledArtifact

        run = CompiledArtifact.load(path=path, format="binary")
    else:
        package = torch._inductor.aoti_load_package(path)

        def run(*inputs: Any) -> Any:
            return package.loader.boxed_run(list(inputs))

    return Loaded(run, meta, constants)


if __name__ == "__main__":
    main()
