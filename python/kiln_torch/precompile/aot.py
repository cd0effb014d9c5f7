"""Whole functions, compiled ahead by ``torch.compile(f, fullgraph=True).aot_compile(inputs)``.

Invariant: what is loaded does what torch would have compiled from this function, these
inputs and these settings here. It is unpickled only after every function that was traced
into it proved to be the same code; what it takes from around the function (its closure,
globals, defaults) is this process's; torch's own guards pass for the inputs, and so do
those that torch drops. Whatever does not fit is compiled, as without.
"""

from __future__ import annotations

import builtins
import dataclasses
import inspect
import time
import types
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._pytree import tree_flatten

from .. import report
from .described import describe, outline
from .dropped import Check, Checks
from .errors import NotShared
from .facts import Facts
from .graphs import has_cpu, refuse_foreign
from .guards import ahead
from .key import Asked, backend_told, model, named, settings
from .store import Package

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .guards import Seen
    from .publishing import Publisher
    from .store import Store

# Under which a package has its one guard state.
_GUARDS = "aot"
_PLAIN = (str, bytes, int, float, complex, bool, type(None))
# What `torch._dynamo.mark_dynamic` and its siblings write on a tensor.
_MARKS = (
    "_dynamo_dynamic_indices",
    "_dynamo_unbacked_indices",
    "_dynamo_weak_dynamic_indices",
    "_dynamo_static_indices",
    "_dynamo_dynamic_range",
    "_dynamo_static_input_type",
    "_dynamo_hint_overrides",
    "_dynamo_shape_ids",
)
_captured: ContextVar[list[Any] | None] = ContextVar("kiln_captured", default=None)


def plug_capture(module: Any) -> None:
    """Look at what ``torch._dynamo.convert_frame`` captures for a function of ours."""
    original = module.fullgraph_capture

    def fullgraph_capture(*args: Any, **named: Any) -> Any:
        output = original(*args, **named)
        captured = _captured.get()
        if captured is not None:
            captured.append(output)
        return output

    module.fullgraph_capture = fullgraph_capture


def plug(module: Any, store: Store, publisher: Publisher) -> None:
    """Take over ``torch._dynamo.aot_compile``'s compile of one function."""
    original = module.aot_compile_fullgraph
    signature = inspect.signature(original)

    def aot_compile_fullgraph(*args: Any, **named: Any) -> Any:
        given = signature.bind(*args, **named)
        try:
            call = _Call(module, given.arguments)
            found = _load(call, store)
        except Exception as error:
            _not_shared(error)
            call, found = None, None
        if found is not None:
            return found
        began = time.monotonic()
        captured: list[Any] = []
        token = _captured.set(captured)
        try:
            # Without it, torch would drop guards for packages that are not made here.
            with ahead() as seen:
                compiled = original(*args, **named)
        finally:
            _captured.reset(token)
        if call is not None:
            try:
                publisher.send(call.whole(compiled, captured, seen, time.monotonic() - began))
            except Exception as error:
                _not_shared(error)
        return compiled

    module.aot_compile_fullgraph = aot_compile_fullgraph


class _Call:
    """One call of ``aot_compile``."""

    def __init__(self, module: Any, given: Mapping[str, Any]) -> None:
        """Name it; ``NotShared`` where it cannot be."""
        from torch._dynamo.convert_frame import get_traced_fn

        self.compiled_function = module.AOTCompiledFunction
        self.function, self.owner = get_traced_fn(given["model"])
        self.args, self.kwargs = given["example_inputs"]
        if self.owner is not None:
            self.args = (self.owner, *self.args)
        hooks = given["hooks"]
        users = getattr(hooks, "guard_filter_fn", None)
        # torch leaves its own there, after the first call.
        if users is not None and getattr(users, "__module__", "") != module.__name__:
            raise NotShared("guard_filter")
        if not isinstance(self.function, types.FunctionType):
            raise NotShared("callable", repr(type(self.function)))
        if torch._inductor.config.freezing:
            raise NotShared("settings", "freezing puts weights into the code")
        how = [
            *backend_told(given["backend"]),
            repr(given.get("dynamic")),
            _inputs(self.args, self.kwargs),
            _modes(),
        ]
        fn = types.MethodType(self.function, self.owner) if self.owner is not None else None
        self.asked: Asked = named("aot", fn or self.function, self.function, how)
        self.unusable: frozenset[str] = frozenset()

    def around(self) -> dict[str, Any]:
        """Return what the compiled function takes from around it, by names of both processes."""
        function = self.function
        found: dict[str, Any] = {}
        for at, cell in enumerate(function.__closure__ or ()):
            found[f"cell {at}"] = cell.cell_contents
        for at, value in enumerate(function.__defaults__ or ()):
            found[f"default {at}"] = value
        for name, value in (function.__kwdefaults__ or {}).items():
            found[f"default {name}"] = value
        for name, value in function.__globals__.items():
            found[f"global {name}"] = value
        if isinstance(self.owner, torch.nn.Module):
            found["self"] = self.owner
        # Numbers and texts are many objects' own: by value, and in the guards.
        return {name: each for name, each in found.items() if type(each) not in _PLAIN}

    def whole(self, compiled: Any, captured: list[Any], seen: Seen, seconds: float) -> Whole:
        """Return what was compiled, to be sent; ``NotShared`` where it is not whole."""
        if seen.trouble:
            raise seen.trouble[0]
        if len(captured) != 1 or len(seen.noted) != 1:
            raise NotShared("guards", f"{len(captured)} graphs, {len(seen.noted)} sets of guards")
        graph = captured[0].backend_input.graph_module.graph
        refuse_foreign(graph)
        facts = Facts()
        facts.add_classes(seen.noted[0].classes)
        codes = dict.fromkeys(captured[0].graph_capture_output.traced_code)
        facts.add_codes(codes, seen.noted[0].classes)
        checks = seen.noted[0].checks
        return Whole(
            self.asked,
            facts,
            has_cpu(graph),
            seconds,
            self.unusable,
            compiled,
            self.around(),
            checks,
        )


@dataclasses.dataclass
class Whole:
    """A function that was compiled, whole."""

    asked: Asked
    facts: Facts
    cpu: bool
    seconds: float
    unusable: frozenset[str]
    compiled: Any
    around: dict[str, Any]
    checks: tuple[Check, ...]

    def packed(self, *, last: bool) -> Package:
        """Return its bytes; what is around the function is named, not in them."""
        del last
        saved = type(self.compiled).serialize(self.compiled, self.around)
        return Package(getattr(saved, "serialized_data", saved), {_GUARDS: self.checks})


def _load(call: _Call, store: Store) -> Any:
    """Return the first function of the cluster that fits; ``None``: there is none."""
    began = time.monotonic()
    for candidate, found in store.fitting(call.asked.name):
        try:
            compiled = _loaded(call, found)
        except NotShared as refused:
            report.count(f"precompile.{refused.reason}")
            report.log.info("aot_compile: not loaded: %s", refused)
            continue
        except Exception as error:
            report.count("precompile.broken")
            report.once("aot load", "aot_compile: what the cluster has cannot be used: %r", error)
            call.unusable |= {candidate.package}
            continue
        report.count("precompile.hits")
        report.count("precompile.load_ms", int((time.monotonic() - began) * 1000))
        store.loaded(found)
        return compiled
    report.count("precompile.misses")
    return None


def _loaded(call: _Call, found: Package) -> Any:
    from torch._dynamo.guards import _get_closure_vars

    function = call.function
    compiled = call.compiled_function.deserialize(found.entry, function.__globals__, call.around())
    artifacts = compiled._artifacts
    if artifacts.runtime_env.bytecode.co_freevars != function.__code__.co_freevars:
        raise NotShared("closure", "it has another closure")
    artifacts.signature = inspect.signature(function, follow_wrapped=False)
    # Cells are shared with whoever else has them; what was pickled are copies.
    of_here = {
        "closure": function.__closure__,
        "argdefs": function.__defaults__,
        "kwdefaults": function.__kwdefaults__,
    }
    # Not every release has them all.
    fields = {each.name for each in dataclasses.fields(artifacts.runtime_env)}
    artifacts.runtime_env = dataclasses.replace(
        artifacts.runtime_env, **{name: of_here[name] for name in fields & of_here.keys()}
    )
    names = compiled.fn.__globals__
    compiled.fn = types.FunctionType(
        compiled.fn.__code__,
        names,
        argdefs=function.__defaults__,
        closure=function.__closure__,
    )
    compiled.fn.__kwdefaults__ = function.__kwdefaults__
    if not compiled.guard_check(*call.args, **call.kwargs):
        raise NotShared("guard_failed", "a guard of torch's fails for the inputs")

    def unchanged() -> bool:
        return settings(called=True) == call.asked.settings

    scope = {**_get_closure_vars(), "G": _Globals({**names, **function.__globals__})}
    check = Checks(found.checks[_GUARDS], scope, unchanged)
    if not check(compiled.prepare_f_locals(*call.args, **call.kwargs)):
        raise NotShared("unlike")
    return compiled


class _Globals(dict[str, Any]):
    """A function's globals, with the name that Dynamo numbers in the process that traces."""

    def __missing__(self, name: str) -> Any:
        if name.startswith("__builtins_dict__"):
            return vars(builtins)
        raise KeyError(name)


def _inputs(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    """Tell the inputs as Dynamo sees them: what fits other inputs is a compile of its own."""
    leaves, spec = tree_flatten((args, kwargs))
    told: list[Any] = [repr(spec)]
    for leaf in leaves:
        if isinstance(leaf, torch.nn.Module):
            told.append(["module", leaf.training, model(leaf)])
        elif isinstance(leaf, torch.Tensor):
            marks = [repr(getattr(leaf, mark, None)) for mark in _MARKS]
            told.append([*outline(leaf), str(leaf.is_leaf), *marks])
        else:
            words = describe(leaf)
            if words is None:
                raise NotShared("inputs", f"an input is a {type(leaf).__qualname__}")
            told.append(words)
    return told


def _modes() -> list[str]:
    """Tell the modes that a graph is traced under; torch's guards check them at each call."""
    if torch._C._len_torch_function_stack() or torch._C._len_torch_dispatch_stack():
        raise NotShared("modes", "a mode of torch's functions is on")
    told: list[object] = [torch.is_grad_enabled(), torch.is_inference_mode_enabled()]
    for device in ("cpu", "cuda"):
        on = torch.is_autocast_enabled(device)
        told += [on, torch.get_autocast_dtype(device) if on else None]
    told.append(torch.is_autocast_cache_enabled())
    return [repr(each) for each in told]


def _not_shared(error: Exception) -> None:
    reason = error.reason if isinstance(error, NotShared) else "bugs"
    report.count(f"precompile.{reason}")
    report.log.info("aot_compile: not shared: %s: %r", reason, error)
