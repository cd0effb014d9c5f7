"""``python -m kiln_torch``: what is the matter, one line a check.

Invariant: ends within a bound, whatever a node, a name server or a setting does, and
asks nodes for their status alone. Exit code 1 where anything is a problem, else 0.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import stat
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from . import __version__, config
from .describing import Check, installed, mistaken, settings, switched, warnings_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

# A person waits: longer timeouts of the settings are not waited for.
_LONGEST = 5.0
_PORTS = "KILN_ENDPOINT takes a node's gRPC port, 7400 unless set otherwise"


def checks(env: Mapping[str, str]) -> list[Check]:
    """Look at everything."""
    with warnings_of():
        told = config.from_env(env)
    found = [Check("kiln_torch", "ok", f"kiln_torch {__version__}, Python {sys.executable}")]
    if told is not None:
        found.append(Check("kiln", "ok", "on"))
    elif not env.get("KILN_ENDPOINT", "").strip():
        advice = "export KILN_ENDPOINT=http://HOST:7400, a node's gRPC port"
        found.append(Check("kiln", "off", "off: KILN_ENDPOINT is not set", advice))
    elif env.get("KILN_DISABLE", "0") not in ("", "0"):
        found.append(Check("kiln", "off", "off: KILN_DISABLE is set", "unset KILN_DISABLE"))
    else:
        advice = "correct the settings that are told below"
        found.append(Check("kiln", "problem", "off: its settings cannot be used", advice))
    on = told is not None
    found += _safely("installed", lambda: installed(env, on=on))
    for name, look in (("settings", settings), ("names", mistaken), ("switched", switched)):
        found += _safely(name, lambda look=look: look(env))
    if told is not None:
        chosen = replace(
            told, connect=min(told.connect, _LONGEST), answer=min(told.answer, _LONGEST)
        )
        found += _safely("endpoints", lambda: _endpoints(chosen))
        found += _safely("socket", lambda: _socket(chosen))
    return found


def _safely(name: str, look: Callable[[], Iterable[Check]]) -> list[Check]:
    try:
        return list(look())
    except Exception as error:
        said = f"cannot be found out: {type(error).__name__}: {error}"
        return [Check(name, "problem", said, "see whether kiln_torch is installed whole")]


def _endpoints(told: config.Settings) -> list[Check]:
    addresses = list(dict.fromkeys(told.endpoints))
    with warnings_of() as heard, ThreadPoolExecutor(max_workers=16) as pool:
        looked = [
            pool.submit(_safely, f"endpoint {a}", lambda a=a: [_endpoint(a, told, heard)])
            for a in addresses
        ]
        return [check for each in looked for check in each.result()]


def _endpoint(address: str, told: config.Settings, heard: list[str]) -> Check:
    """Do as a program does: the same connection, timeouts and question."""
    from . import wire
    from .endpoint import Endpoint
    from .errors import KilnError
    from .trust import Trust

    name = f"endpoint {address}"
    node = Endpoint(address, told, Trust(told.signers, rooted=bool(told.roots)))
    try:
        if not node.usable:
            said = [each for each in heard if each.startswith(f"node {address}")]
            return Check(name, "problem", *_refused(address, said, told.connect))
        began = time.monotonic()
        status = node.unary("Status", wire.StatusRequest(), wire.StatusResponse)
        took = (time.monotonic() - began) * 1000
    except KilnError as error:
        return Check(name, "problem", str(error), "ask another node: kiln status")
    finally:
        node.close()
    said = f"kiln {status.version}, node {status.node}, {took:.1f} ms"
    if status.node in status.left:
        return Check(name, "problem", f"{said}: left its cluster", "name a node that is a member")
    if not status.quorum:
        return Check(name, "problem", f"{said}: no quorum", "start the nodes that are missing")
    if told.signers and not {each.key for each in status.signers} & set(told.signers):
        advice = "KILN_SIGNERS has to name keys of `kiln status --json`"
        return Check(name, "problem", f"{said}: no signer of it is in KILN_SIGNERS", advice)
    return Check(name, "ok", said)


def _refused(address: str, heard: list[str], seconds: float) -> tuple[str, str]:
    """Say why, and which port it is where another protocol answers."""
    if not heard or "cannot be reached" in heard[0]:
        # Asked no second time: a name that is not resolved would cost another wait.
        said = heard[0] if heard else "it does not answer in time"
        return said, f"is a node running there, and is the port open? {_PORTS}"
    answer = b""
    host, _, port = address.rpartition(":")
    with (
        contextlib.suppress(OSError, ValueError),
        socket.create_connection((host.strip("[]"), int(port)), seconds) as plain,
    ):
        plain.sendall(b"GET /readyz HTTP/1.0\r\n\r\n")
        answer = plain.recv(64)
    if answer.startswith(b"HTTP/"):
        return "it speaks HTTP, not gRPC", _PORTS
    if answer.startswith(b"-"):
        return "it speaks Redis' protocol, not gRPC", _PORTS
    return heard[0], _PORTS


def _socket(told: config.Settings) -> Iterator[Check]:
    name, advice = "socket", "name the socket of the node on this machine, or unset KILN_SOCKET"
    if not told.socket:
        yield Check(name, "off", "KILN_SOCKET is not set: bytes come over gRPC")
        return
    try:
        if not stat.S_ISSOCK(Path(told.socket).stat().st_mode):
            yield Check(name, "problem", f"{told.socket} is no socket", advice)
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(told.connect)
            connection.connect(told.socket)
    except PermissionError:
        said = f"{told.socket}: this user may not use it"
        yield Check(name, "problem", said, "join its group, or give it to this user")
    except FileNotFoundError:
        yield Check(name, "problem", f"{told.socket} does not exist", advice)
    except OSError as error:
        yield Check(name, "problem", f"{told.socket}: {error}", advice)
    else:
        yield Check(name, "ok", f"{told.socket} can be used")


def main() -> int:
    """Look, and print."""
    parser = argparse.ArgumentParser("python -m kiln_torch", description="Say what is the matter.")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    as_json = parser.parse_args().json
    found = checks(os.environ)
    if as_json:
        print(json.dumps({"checks": [asdict(each) for each in found]}))
    else:
        for each in found:
            advice = f" -> {each.advice}" if each.advice else ""
            print(f"{each.state:8}{each.name:24} {each.said}{advice}")
    return int(any(each.state == "problem" for each in found))


if __name__ == "__main__":
    code = 1
    # Whoever reads it through `head` has read enough.
    with contextlib.suppress(BrokenPipeError):
        code = main()
        sys.stdout.flush()
    # A thread that waits for a name server must not keep this process.
    os._exit(code)
