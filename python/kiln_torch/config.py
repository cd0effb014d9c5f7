"""What the environment tells the client.

Invariant: reads nothing but ``KILN_*`` variables, and a value that cannot be
read is the default with one warning: never an exception at ``import torch``.
"""

from __future__ import annotations

import ipaddress
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from . import report

if TYPE_CHECKING:
    from collections.abc import Mapping

_SCHEMES = ("http://", "grpc://", "https://")
_KEY_BYTES = 32
# What the command line takes for yes, too.
_YES = frozenset(("1", "true", "t", "yes", "y", "on"))
# Kiln's own, or one of an issuer that the cluster believes (a JWT).
_TOKEN = re.compile(r"kiln_[0-9a-f]{16}_[0-9a-f]{64}|[\w-]{8,}\.[\w-]{8,}\.[\w-]{8,}", re.ASCII)
_LONGEST_TOKEN = 16_384
# Of a number of bytes that any machine could have.
_DIGITS = 15


@dataclass(frozen=True)
class Settings:
    """How a process reaches its cluster."""

    # host:port of nodes' gRPC, tried in order.
    endpoints: tuple[str, ...]
    # Those of them that are spoken to in TLS.
    encrypted: frozenset[str] = frozenset()
    # Files in PEM: the authority of the nodes' certificates, this client's own and its key.
    ca: str | None = None
    cert: str | None = None
    cert_key: str | None = None
    # Who asks, where the cluster wants to know. Never in what is printed.
    token: str | None = field(default=None, repr=False)
    # The file that it came from: Kubernetes writes a new token there every hour.
    token_file: str | None = None
    # Unix socket of the node on this machine.
    socket: str | None = None
    # Tenant; nodes call the unnamed one "default".
    namespace: str = "default"
    # Public keys that alone are trusted; empty: those that the nodes name.
    signers: tuple[bytes, ...] = ()
    # Public keys of the roots without whose certificate no signer is trusted; empty: any.
    roots: tuple[bytes, ...] = ()
    # Seconds that finding out that all endpoints are dead may cost, once.
    connect: float = 1.0
    # Seconds until a node begins to answer, and between two chunks of bytes.
    answer: float = 10.0
    # Seconds that a compile waits for another process that compiles the same.
    wait: float = 120.0
    # Seconds after which a lease that was never published under is given up.
    hold: float = 1800.0
    # Seconds that a process which ends may take for what it has not published yet.
    exit: float = 5.0
    # Bytes that may be fetched ahead while a program starts; 0: none are.
    prefetch: int = 256 << 20

    def current_token(self) -> str | None:
        """Return the token that is in the file now; the one before, where it has none."""
        if self.token_file is None:
            return self.token
        try:
            changed = os.stat(self.token_file).st_mtime_ns  # noqa: PTH116
            known = _read_tokens.get(self.token_file)
            if known is None or known[0] != changed:
                text = Path(self.token_file).read_text(encoding="utf-8").strip()
                known = (changed, text if _is_token(text) else self.token or "")
                _read_tokens[self.token_file] = known
        except (OSError, UnicodeDecodeError):
            return self.token
        return known[1]


# By file: when it changed, and what was in it.
_read_tokens: dict[str, tuple[int, str]] = {}


def from_env(environ: Mapping[str, str] | None = None) -> Settings | None:
    """Read the settings; ``None`` where Kiln is not configured or switched off."""
    env = os.environ if environ is None else environ
    if env.get("KILN_DISABLE", "0") not in ("", "0"):
        return None
    named = env.get("KILN_ENDPOINT", "").split(",")
    endpoints = tuple(filter(None, map(_endpoint, named)))
    if not endpoints:
        return None
    token = _token(env)
    if token is None:
        # Who was told to say who it is, and cannot, asks nobody.
        return None
    if token and not insecure_token(env):
        encrypted = {_endpoint(n) for n in named if n.strip().startswith("https://")}
        endpoints = tuple(e for e in endpoints if e in encrypted or _is_private(e))
        if not endpoints:
            return None
    signers = tuple(filter(None, map(_signer, env.get("KILN_SIGNERS", "").split(","))))
    if env.get("KILN_SIGNERS") and not signers:
        # Pinning was asked for: trusting anybody instead would be worse than no cache.
        report.once("settings", "KILN_SIGNERS has no valid key: Kiln is off")
        return None
    pinned = [text for text in env.get("KILN_ROOT", "").split(",") if text.strip()]
    roots = tuple(filter(None, (_signer(text, "KILN_ROOT") for text in pinned)))
    if len(roots) != len(pinned) or (env.get("KILN_ROOT") and not roots):
        report.once("settings", "KILN_ROOT is no valid key: Kiln is off")
        return None
    return Settings(
        endpoints=endpoints,
        encrypted=frozenset(
            filter(None, (_endpoint(n) for n in named if n.strip().startswith("https://")))
        ),
        ca=env.get("KILN_CA") or None,
        cert=env.get("KILN_CERT") or None,
        cert_key=env.get("KILN_CERT_KEY") or None,
        token=token or None,
        token_file=(env.get("KILN_TOKEN_FILE") or None) if token else None,
        socket=env.get("KILN_SOCKET") or None,
        namespace=env.get("KILN_NAMESPACE") or Settings.namespace,
        signers=signers,
        roots=roots,
        connect=_seconds(env, "KILN_CONNECT_TIMEOUT", Settings.connect),
        answer=_seconds(env, "KILN_TIMEOUT", Settings.answer),
        wait=_seconds(env, "KILN_WAIT", Settings.wait),
        hold=_seconds(env, "KILN_HOLD", Settings.hold),
        exit=_seconds(env, "KILN_EXIT_SECONDS", Settings.exit),
        prefetch=_bytes(env, "KILN_PREFETCH_BYTES", Settings.prefetch),
    )


def _endpoint(text: str) -> str | None:
    text = text.strip()
    if not text:
        return None
    for scheme in _SCHEMES:
        text = text.removeprefix(scheme)
    address = text.rstrip("/")
    host, colon, port = address.rpartition(":")
    if not (host and colon and port.isdigit() and "/" not in address):
        report.once(f"endpoint {text}", "KILN_ENDPOINT: %r is not http://HOST:PORT", text)
        return None
    return address


def insecure_token(env: Mapping[str, str]) -> bool:
    """Whether the token goes in plain text to other machines too: KILN_INSECURE_TOKEN=1.

    The words are those that ``kiln`` takes for yes; whatever else stands there is no.
    """
    return env.get("KILN_INSECURE_TOKEN", "").strip().lower() in _YES


def _token(env: Mapping[str, str]) -> str | None:
    """Return the token, empty where there is none; ``None`` where it cannot be had."""
    file = env.get("KILN_TOKEN_FILE")
    text = env.get("KILN_TOKEN", "")
    if file:
        try:
            if Path(file).stat().st_mode & 0o004:
                report.once("token file", "every user of this machine can read %s: chmod 600", file)
            text = Path(file).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            report.once("token", "KILN_TOKEN_FILE cannot be read: Kiln is off: %s", error)
            return None
    text = text.strip()
    if not text and not file:
        return ""
    if _is_token(text):
        return text
    # Not repeated: it may be another secret.
    report.once("token", "what KILN_TOKEN or its file has is no token: Kiln is off")
    return None


def _is_token(text: str) -> bool:
    return len(text) <= _LONGEST_TOKEN and _TOKEN.fullmatch(text) is not None


def _is_private(address: str) -> bool:
    host = address.rpartition(":")[0].strip("[]")
    if host == "localhost":
        return True
    try:
        if ipaddress.ip_address(host).is_loopback:
            return True
    except ValueError:
        pass
    report.once(
        f"token {address}",
        "the token would go to %s in plain text: it is left out; name it by https://, or set "
        "KILN_INSECURE_TOKEN=1",
        address,
    )
    return False


def _signer(text: str, name: str = "KILN_SIGNERS") -> bytes | None:
    text = text.strip()
    if not text:
        return None
    try:
        key = bytes.fromhex(text)
    except ValueError:
        key = b""
    if len(key) != _KEY_BYTES:
        report.once(f"signer {text}", "%s: %r is not a public key in hex", name, text)
        return None
    return key


def _seconds(env: Mapping[str, str], name: str, default: float) -> float:
    text = env.get(name)
    if not text:
        return default
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if 0.0 <= seconds < float("inf"):
        return seconds
    report.once(name, "%s: %r is no number of seconds; %s it is", name, text, default)
    return default


def merge_ranks(environ: Mapping[str, str] | None = None) -> bool:
    """Whether ranks that differ in their GPU's index alone share what one of them compiled.

    KILN_RANKS is ``merge``, the default, or ``keep``: then the index stays in every key.
    """
    text = (os.environ if environ is None else environ).get("KILN_RANKS", "")
    if text not in ("", "merge", "keep"):
        report.once("KILN_RANKS", "KILN_RANKS: %r is not merge or keep; merge it is", text)
    return text != "keep"


def _bytes(env: Mapping[str, str], name: str, default: int) -> int:
    text = env.get(name)
    if not text:
        return default
    if text.isascii() and text.isdecimal() and len(text) <= _DIGITS:
        return int(text)
    report.once(name, "%s: %r is no number of bytes; %s it is", name, text, default)
    return default


def precompiles(environ: Mapping[str, str] | None = None) -> bool:
    """Whether traced code is shared as well: KILN_PRECOMPILE=1."""
    env = os.environ if environ is None else environ
    return env.get("KILN_PRECOMPILE", "0") not in ("", "0")
