"""What is installed, and which settings are in force, found out without asking any node.

Invariant: every value is read by the code that reads it in a program, each variable
alone; torch is not imported; no signer's key and no token is in what is said.
"""

from __future__ import annotations

import difflib
import importlib.metadata
import importlib.util
import logging
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from . import config, report

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

# Each variable with the field of `Settings` that has its default, or the default itself.
SETTINGS: dict[str, str] = {
    "KILN_ENDPOINT": "",
    "KILN_CA": "",
    "KILN_CERT": "",
    "KILN_CERT_KEY": "",
    "KILN_TOKEN": "",
    "KILN_TOKEN_FILE": "",
    "KILN_INSECURE_TOKEN": "0",
    "KILN_SOCKET": "",
    "KILN_NAMESPACE": ".namespace",
    "KILN_SIGNERS": "",
    "KILN_ROOT": "",
    "KILN_WAIT": ".wait",
    "KILN_HOLD": ".hold",
    "KILN_TIMEOUT": ".answer",
    "KILN_CONNECT_TIMEOUT": ".connect",
    "KILN_RANKS": "merge",
    "KILN_EXIT_SECONDS": ".exit",
    "KILN_TAG": "",
    "KILN_PREFETCH_BYTES": ".prefetch",
    "KILN_DISABLE": "0",
    "KILN_PRECOMPILE": "0",
    "KILN_VLLM_AOT": "1",
    "KILN_VLLM_COMPILER": "0",
}
_PREFIX = "KILN_"
_PINS = frozenset({"KILN_SIGNERS", "KILN_ROOT"})
_NEAR = 0.75
_NEEDED = {"grpc": "grpcio", "google.protobuf": "protobuf", "blake3": "", "cryptography": ""}
_GROUPS = ("torch.backends", "torch_dynamo_backends")
_INSTALL = "install kiln_torch into this Python: pip install ./python"


@dataclass(frozen=True)
class Check:
    """One line: ``state`` is ok, off or problem; ``advice`` is what to do."""

    name: str
    state: str
    said: str
    advice: str = ""


@contextmanager
def warnings_of() -> Iterator[list[str]]:
    """Collect what the package would log, in place of logging it."""
    heard: list[str] = []
    # What was said once would not be said again.
    report.reset()
    handler = logging.Handler()
    handler.emit = lambda record: heard.append(record.getMessage())  # pyrefly: ignore
    propagated, report.log.propagate = report.log.propagate, False
    report.log.addHandler(handler)
    try:
        yield heard
    finally:
        report.log.removeHandler(handler)
        report.log.propagate = propagated


def installed(env: Mapping[str, str], *, on: bool) -> Iterator[Check]:
    """Say whether torch, what the package needs and its entry points are here."""
    wrong = "problem" if on else "off"
    try:
        yield Check("torch", "ok", f"torch {importlib.metadata.version('torch')}")
    except importlib.metadata.PackageNotFoundError:
        if importlib.util.find_spec("torch") is None:
            yield Check("torch", "off", f"{sys.executable} has no torch", "install torch in it")
        else:
            yield Check("torch", "ok", "torch of unknown version")
    missing = [pip or name for name, pip in _NEEDED.items() if not _there(name)]
    if missing:
        yield Check("needed", wrong, f"missing: {', '.join(missing)}", _INSTALL)
    for group in _GROUPS:
        if any(each.name == "kiln" for each in importlib.metadata.entry_points(group=group)):
            yield Check(group, "ok", "the entry point is installed")
        else:
            yield Check(group, wrong, "the entry point is not installed", _INSTALL)
    # torch's own switch of its entry points.
    if env.get("TORCH_DEVICE_BACKEND_AUTOLOAD", "1") != "1":
        said = "TORCH_DEVICE_BACKEND_AUTOLOAD keeps torch from loading its entry points"
        yield Check("autoload", wrong, said, "unset it, or set it to 1")


def _there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def settings(env: Mapping[str, str]) -> Iterator[Check]:
    """Say which value of each variable is in force."""
    for name, default in SETTINGS.items():
        usual = default
        if default.startswith("."):
            value = getattr(config.Settings, default[1:])
            usual = f"{value:g}" if isinstance(value, float) else str(value)
        text = env.get(name, "")
        # A pin without a key is a mistake that turns Kiln off, blank or not.
        if not (text if name in _PINS else text.strip()):
            yield Check(name, "ok", f"{usual} (default)" if usual else "not set")
            continue
        with warnings_of() as heard:
            _read(name, text)
        if name == "KILN_SIGNERS":
            bad = sum("is not a public key" in each for each in heard)
            given = len(dict.fromkeys(filter(None, map(str.strip, text.split(",")))))
            said = f"{given - bad} of {given} keys can be read"
            advice = "give 64 hex digits a key, comma-separated; without a valid key Kiln is off"
            yield Check(name, "problem" if heard else "ok", said, advice if heard else "")
        elif name == "KILN_TOKEN" and not heard:
            # It is a secret.
            yield Check(name, "ok", "set")
        elif heard:
            yield Check(name, "problem", "; ".join(heard), f"correct it or unset {name}")
        else:
            yield Check(name, "ok", text)


def _read(name: str, text: str) -> None:
    # Where a token goes is not asked here: the endpoint is made up.
    apart = {"KILN_DISABLE": "0", "KILN_INSECURE_TOKEN": "1"}
    alone = {"KILN_ENDPOINT": "unused:1", **apart, name: text}
    config.from_env(alone)
    config.merge_ranks(alone)


def mistaken(env: Mapping[str, str]) -> Iterator[Check]:
    """Tell names that are nearly a setting; the nodes' own variables are none of them."""
    endings = [name.removeprefix(_PREFIX) for name in SETTINGS]
    for name in sorted(env):
        if name in SETTINGS or not name.upper().startswith(_PREFIX):
            continue
        near = difflib.get_close_matches(name.upper()[len(_PREFIX) :], endings, 1, _NEAR)
        if near:
            meant = _PREFIX + near[0]
            yield Check(name, "problem", "no setting of this name", f"did you mean {meant}?")


def switched(env: Mapping[str, str]) -> Iterator[Check]:
    """Say what of precompile, ranks and prefetch is on."""
    with warnings_of():
        wanted, merged = config.precompiles(env), config.merge_ranks(env)
        apart = {"KILN_ENDPOINT": "unused:1", "KILN_SIGNERS": "", "KILN_INSECURE_TOKEN": "1"}
        read = config.from_env({**env, **apart})
    if not wanted:
        yield Check("precompile", "off", "tracing is not shared", "KILN_PRECOMPILE=1 shares it")
    elif sys.version_info < (3, 11):
        yield Check("precompile", "problem", "it needs Python 3.11", "use a later Python")
    elif env.get("TORCH_CACHING_PRECOMPILE", "1") != "1":
        yield Check("precompile", "off", "TORCH_CACHING_PRECOMPILE keeps it off", "unset it")
    else:
        yield Check("precompile", "ok", "traced code is shared")
    said = "ranks share one compile" if merged else "each rank compiles for itself"
    yield Check("ranks", "ok" if merged else "off", said, "" if merged else "KILN_RANKS=merge")
    if read is None or not read.prefetch:
        advice = "" if read is None else "unset KILN_PREFETCH_BYTES"
        yield Check("prefetch", "off", "nothing is fetched ahead", advice)
    else:
        by = "KILN_TAG" if env.get("KILN_TAG") else "the script and its arguments"
        said = f"up to {read.prefetch} bytes are fetched ahead, by {by}"
        yield Check("prefetch", "ok", said)
