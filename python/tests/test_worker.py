"""The node's Inductor worker with the real torch, alone: no node, no CPU but this one's.

`pytest python/tests/test_worker.py` in an environment with torch and pytest.
"""

from __future__ import annotations

import importlib
import importlib.util
import io
import json
import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

HERE = Path(__file__).resolve().parent
FIXTURES = HERE.parent.parent / "tests" / "fixtures"
PACKAGE = HERE.parent / "kiln_torch" / "worker"
BLOCK = "block_f32_dynamic." + ("211" if torch.__version__.startswith("2.11") else "new") + ".pt2"

# By its files, as a node sends them: the package around it need not be installed.
spec = importlib.util.spec_from_file_location("kiln_worker", PACKAGE / "__init__.py")
assert spec is not None
assert spec.loader is not None
sys.modules["kiln_worker"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sys.modules["kiln_worker"])
artifact, compiling, examples, messages, options, program, refused = (
    importlib.import_module(f"kiln_worker.{name}")
    for name in ["artifact", "compiling", "examples", "messages", "options", "program", "refused"]
)


def frame(message: bytes) -> bytes:
    return len(message).to_bytes(4, "big") + message


def job(archive: bytes, **fields: object) -> bytes:
    options = fields.pop("options", {})
    assert isinstance(options, dict)
    encoded = [(1, fields.get("compiler", artifact.STANDALONE)), (2, archive)]
    for name, value in options.items():
        encoded.append((3, messages.encode((1, name), (2, json.dumps(value)))))
    if fields.get("runtime_shape"):
        encoded.append((4, fields["runtime_shape"]))
    encoded += [(5, fields.get("device", "cpu")), (6, fields.get("compute", 0)), (7, 8 << 30)]
    return messages.encode(*encoded)


UNCONFINED = json.dumps({"rules": None, "read": 0, "filter": "", "seccomp": 0})


class Node:
    """Runs the worker as a node does: isolated, in a folder of its own, through pipes."""

    def __init__(self, folder: Path, python: str | Path = sys.executable) -> None:
        folder.mkdir()
        self.folder = folder
        passed = {n: os.environ[n] for n in ("PATH", "LD_LIBRARY_PATH") if n in os.environ}
        self.process = subprocess.Popen(
            [python, "-I", "-B", "-c", (PACKAGE / "bootstrap.py").read_text()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=folder,
            # As the node's launcher says it where the kernel has nothing to confine by: the
            # real one is tested with nodes.
            env={"TMPDIR": str(folder), "LC_ALL": "C", "KILN_CONFINE": UNCONFINED, **passed},
            # As `process_group=0`, which Python 3.10 does not have.
            preexec_fn=os.setpgrp,
        )
        assert self.process.stdout and self.process.stdin
        self.answers, self.requests = self.process.stdout, self.process.stdin
        sources = {path.name: path.read_text() for path in PACKAGE.glob("*.py")}
        self.requests.write(frame(json.dumps(sources).encode()))
        self.requests.flush()
        self.ready = self.receive()

    def tools(self) -> dict[str, str]:
        """The versions that it said it compiles with."""
        fingerprint = next(value for number, value in messages.decode(self.ready[1]) if number == 1)
        pairs = [dict(messages.decode(v)) for n, v in messages.decode(fingerprint) if n == 2]
        return {bytes(p[1]).decode(): bytes(p[2]).decode() for p in pairs}

    def receive(self) -> tuple[int, bytes]:
        """One answer: its number and body."""
        message = messages.read_frame(self.answers)
        assert message is not None, "the worker ended"
        ((number, body),) = messages.decode(message)
        return number, bytes(body)

    def ask(self, message: bytes) -> tuple[int, bytes]:
        """Send the one job, and wait for its answer and the end."""
        self.requests.write(frame(message))
        self.requests.flush()
        answer = self.receive()
        self.process.wait(timeout=60)
        return answer


def files_of(answer: tuple[int, bytes]) -> dict[str, bytes]:
    number, body = answer
    assert number == 2, body[:2000]
    listed = [dict(messages.decode(v)) for n, v in messages.decode(strip(body)) if n == 1]
    return {bytes(f[1]).decode(): bytes(f.get(2, b"")) for f in listed}


def strip(done: bytes) -> bytes:
    """WorkerDone without its last field, a double, which the worker itself never reads."""
    assert done[-9] == 2 << 3 | 1
    return done[:-9]


def failure_of(answer: tuple[int, bytes]) -> tuple[int, str]:
    number, body = answer
    assert number == 3
    fields = dict(messages.decode(body))
    return fields[1], bytes(fields[2]).decode()


def load_elsewhere(files: dict[str, bytes], folder: Path, rows: int) -> None:
    """Loads the files in another process, folder and cache, and compares with eager."""
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    caches = folder / "caches"
    done = subprocess.run(
        [sys.executable, "-I", HERE / "check_artifact.py", folder, GOLDEN, str(rows)],
        env={**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(caches)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


GOLDEN = FIXTURES / "block_f32.safetensors"


@pytest.mark.parametrize("compiler", [artifact.STANDALONE, artifact.AHEAD_OF_TIME])
@pytest.mark.parametrize("shape", [None, 5])
def test_a_program_becomes_an_artifact_that_loads_anywhere(
    tmp_path: Path, compiler: str, shape: int | None
) -> None:
    node = Node(tmp_path / "worker")
    number, ready = node.ready
    assert number == 1
    fingerprints = [list(messages.decode(v)) for n, v in messages.decode(ready) if n == 1]
    names = [bytes(dict(f)[1]).decode() for f in fingerprints]
    assert names == [artifact.AHEAD_OF_TIME, artifact.STANDALONE]
    tools = node.tools()
    assert tools["torch"] == torch.__version__
    for tool in [
        "torch_key",
        "python",
        "cuda",
        "triton",
        "cudnn",
        "inductor_defaults",
        "cxx",
        "isa",
        "march",
    ]:
        assert tools[tool], tool

    message = job((FIXTURES / BLOCK).read_bytes(), compiler=compiler, runtime_shape=shape)
    files = files_of(node.ask(message))
    said = json.loads(files["meta.json"])
    assert set(files) == {artifact.MODULES[compiler], "meta.json"}
    assert [i["kind"] for i in said["inputs"]] == ["parameter"] * 4 + ["user_input"]
    assert said["runtime_shape"] == shape
    load_elsewhere(files, tmp_path / "elsewhere", shape or 7)


def test_constants_are_brought_along_and_weights_are_not(tmp_path: Path) -> None:
    class Scaled(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = torch.nn.Linear(8, 4)
            self.register_buffer("shift", torch.arange(4.0))
            self.table = torch.tensor([1.0, -2.0, 3.0, 0.5])

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            made = torch.relu(self.linear(x)) * self.table + self.shift
            return made, made.sum(-1)

    module, x = Scaled().eval(), torch.randn(3, 8)
    buffer = io.BytesIO()
    torch.export.save(torch.export.export(module, (x,)), buffer)
    files = compiling.compile_program(
        messages.Job(archive=buffer.getvalue(), device="cpu"), scratch(tmp_path)
    )
    weights = module.linear.weight.detach().numpy().tobytes()
    assert weights not in files["artifact.bin"], "a weight was baked in"
    folder = tmp_path / "artifact"
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    loaded = artifact.load_artifact(folder)
    state = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    with torch.no_grad():
        for one, expected in zip(loaded.bind(state)(x), module(x), strict=True):
            torch.testing.assert_close(one, expected)
        in_order = [state[n] for n in ("linear.weight", "linear.bias", "shift")]
        torch.testing.assert_close(loaded.bind(in_order)(x)[0], module(x)[0])
    with pytest.raises(KeyError, match="shift"):
        loaded.bind(dict(module.named_parameters()))
    with pytest.raises(TypeError, match="inputs for"):
        loaded(x)


def scratch(tmp_path: Path) -> Path:
    folder = tmp_path / "scratch"
    folder.mkdir()
    return folder


def test_a_dynamic_artifact_refuses_sizes_that_it_is_not_for(tmp_path: Path) -> None:
    class Pooled(torch.nn.Module):
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return torch.softmax(x @ y, -1).sum(0)

    b, t = torch.export.Dim("b", min=2, max=64), torch.export.Dim("t", min=2, max=64)
    example = (torch.randn(8, 16, 24), torch.randn(24, 4))
    program = torch.export.export(Pooled(), example, dynamic_shapes=({0: b, 1: t}, None))
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    files = compiling.compile_program(messages.Job(archive=buffer.getvalue()), scratch(tmp_path))
    folder = tmp_path / "artifact"
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    loaded = artifact.load_artifact(folder)
    for sizes in [(8, 16), (2, 64), (33, 3)]:
        x = torch.randn(*sizes, 24)
        torch.testing.assert_close(loaded(x, example[1])[0], Pooled()(x, example[1]))
    for sizes in [(1, 16), (65, 16), (8, 1)]:
        with pytest.raises(ValueError, match="these sizes"):
            loaded(torch.randn(*sizes, 24), example[1])


class Bomb:
    """Runs a command where it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        """The command."""
        return (os.system, (f"touch {Bomb.mark}",))

    mark = ""


def test_nothing_of_an_archive_is_unpickled_or_evaluated(tmp_path: Path) -> None:
    Bomb.mark = str(tmp_path / "exploded")
    archive = (FIXTURES / BLOCK).read_bytes()
    with zipfile.ZipFile(io.BytesIO(archive)) as opened:
        entries = {name: opened.read(name) for name in opened.namelist()}
    prefix = next(name for name in entries if name.endswith("archive_format"))[
        : -len("archive_format")
    ]

    def repacked(**changed: bytes) -> bytes:
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as made:
            for name, data in {**entries, **changed}.items():
                made.writestr(name, data)
        return out.getvalue()

    bomb = pickle.dumps(Bomb())
    config = json.loads(entries[f"{prefix}data/weights/model_weights_config.json"])
    for entry in config["config"].values():
        entry["use_pickle"] = True
    pickled = {f"{prefix}data/weights/weight_{i}": bomb for i in range(4)}
    pickled[f"{prefix}data/weights/model_weights_config.json"] = json.dumps(config).encode()
    pickled[f"{prefix}data/sample_inputs/model.pt"] = bomb
    pickled[f"{prefix}data/constants/custom_obj_0"] = bomb
    read = program.read_program(repacked(**pickled), "cpu")
    assert len(read.inputs) == 5
    assert not Path(Bomb.mark).exists()

    model = f"{prefix}models/model.json"
    text = entries[model].decode()
    assert "Symbol('s77'" in text
    for evil in (
        f"__import__('os').system('touch {Bomb.mark}')",
        "s77.__class__",
        "().__class__",
        "open('x')",
        "'s77'.join",
        "lambda: 1",
        "Symbol('s77'+'x')",
    ):
        tree = json.loads(text)
        replace_expressions(tree, evil)
        with pytest.raises(refused.Refused, match="no size") as caught:
            program.read_program(repacked(**{model: json.dumps(tree).encode()}), "cpu")
        assert caught.value.kind == refused.INVALID_INPUT, evil
    assert not Path(Bomb.mark).exists()


def replace_expressions(node: object, text: str) -> None:
    if isinstance(node, dict):
        for name, value in node.items():
            if name == "expr_str":
                node[name] = text
            else:
                replace_expressions(value, text)
    elif isinstance(node, list):
        for item in node:
            replace_expressions(item, text)


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("no_such_option", True, "no option"),
        ("max_autotune", 3, "cannot be"),
        ("max_autotune", "yes", "cannot be"),
        ("cpp.cxx", "/bin/false", "cannot be"),
        ("cpp.cxx", None, "cannot be"),
        ("epilogue_fusion", {"a": 1}, "cannot be"),
        ("fx_graph_cache", False, "the node's to set"),
        ("compile_threads", 64, "the node's to set"),
        ("trace.enabled", True, "the node's to set"),
        ("aot_inductor.output_path", "elsewhere", "cannot be"),
        ("aot_inductor.package", False, "the node's to set"),
    ],
)
def test_odd_options_are_refused(name: str, value: object, told: str) -> None:
    with pytest.raises(refused.Refused, match=told) as caught:
        options.check_options({name: value})
    assert caught.value.kind == refused.INVALID_INPUT


def test_plain_options_pass() -> None:
    options.check_options(
        {
            "max_autotune": True,
            "epilogue_fusion": False,
            "coordinate_descent_tuning": True,
            "cpp.dynamic_threads": True,
            "cpp.threads": 4,
            "max_autotune_gemm_backends": "ATEN",
        }
    )


@pytest.mark.parametrize("size", [0, 1 << 50])
def test_a_runtime_shape_beyond_the_exported_range_is_refused(size: int) -> None:
    read = program.read_program((FIXTURES / BLOCK).read_bytes(), "cpu")
    with pytest.raises(refused.Refused, match="exported range"):
        examples.example_inputs(read, size)


def test_a_runtime_shape_fixes_every_size() -> None:
    read = program.read_program((FIXTURES / BLOCK).read_bytes(), "cpu")
    inputs, shapes = examples.example_inputs(read, 5)
    assert shapes == "from_example_inputs"
    assert tuple(inputs[-1].shape) == (5, 9, 72)
    inputs, shapes = examples.example_inputs(read, None)
    assert shapes == "from_graph"
    assert isinstance(inputs[-1].shape[0], torch.SymInt)


def test_messages_are_protobufs() -> None:
    """Against the real protobuf, where it is installed."""
    descriptor_pb2 = pytest.importorskip("google.protobuf.descriptor_pb2")
    theirs = descriptor_pb2.FieldDescriptorProto(name="ü" * 100, number=70_000, default_value="x")
    ours = messages.encode((1, "ü" * 100), (3, 70_000), (7, "x"))
    assert descriptor_pb2.FieldDescriptorProto.FromString(ours) == theirs
    read = {
        n: v if isinstance(v, int) else bytes(v).decode()
        for n, v in messages.decode(theirs.SerializeToString())
    }
    assert read == {1: "ü" * 100, 3: 70_000, 7: "x"}
    for bad in (b"\x0a\x05ab", b"\x80", b"\x0d\x00\x00\x00\x00"):
        with pytest.raises(ValueError):
            list(messages.decode(bad))


def test_what_is_wrong_with_a_request_is_told(tmp_path: Path) -> None:
    node = Node(tmp_path / "worker")
    kind, told = failure_of(node.ask(job(b"not a zip")))
    assert (kind, "not a .pt2" in told) == (refused.INVALID_INPUT, True)
    gpu = messages.Job(archive=b"", device="cuda", compute=10)
    with pytest.raises(refused.Refused, match="gpu_10") as caught:
        compiling.compile_program(gpu, tmp_path)
    assert caught.value.kind == refused.TOOLCHAIN_MISSING


def test_the_worker_ends_with_its_node(tmp_path: Path) -> None:
    node = Node(tmp_path / "worker")
    node.requests.close()
    assert node.process.wait(timeout=60) == 0
