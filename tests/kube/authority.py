"""Certificates as an operator makes them, and what a stranger sees of those that are shown.

Invariant: every certificate is made by `kiln certs` or by the chart's pods, and every
judgement is OpenSSL's, over the network.
"""

from __future__ import annotations

import base64
import re
import subprocess
from pathlib import Path

from kube.bench import Bench
from kube.machine import Kube

# Of the secret that has them.
NAME = "kiln-ca"
FILES = ("members-ca.pem", "members-ca.key", "clients-ca.pem", "clients-ca.key")
# By then a server that refuses a certificate has closed the connection.
PATIENCE = "2"
# What `timeout` answers where it had to end the command.
TIMED_OUT = 124
Pair = tuple[Path, Path]


def put_secret(kube: Kube, name: str, files: dict[str, bytes]) -> None:
    """Creates or changes it."""
    data = {key: base64.b64encode(value).decode() for key, value in files.items()}
    kube.apply({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "data": data})


def host(command: list[str], data: bytes | None = None) -> str:
    """A command of this machine that must succeed."""
    done = subprocess.run(command, input=data, capture_output=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[:4])}: {done.stderr.decode()}")
    return done.stdout.decode()


class Authority:
    """What `kiln certs init` makes, in a folder that is on no node."""

    def __init__(self, b: Bench, name: str) -> None:
        """Makes both, unless they are there."""
        self.program, self.folder = b.program, b.folder / name
        if not self.folder.exists():
            host([str(b.program), "certs", "init", "--dir", str(self.folder)])

    def files(self) -> dict[str, bytes]:
        """For the secret."""
        return {name: (self.folder / name).read_bytes() for name in FILES}

    def and_then(self, other: Authority) -> dict[str, bytes]:
        """The same with the certificates of `other` behind its own: both are believed."""
        files = self.files()
        for name in ("members-ca.pem", "clients-ca.pem"):
            files[name] += (other.folder / name).read_bytes()
        return files

    def member(self, name: str, node: int) -> Pair:
        """A certificate that names a node."""
        out = ["--out", str(self.folder), "--name", name, "--node", str(node)]
        host([str(self.program), "certs", "issue", "member", "--dir", str(self.folder), *out])
        return self.folder / f"{name}-member.pem", self.folder / f"{name}-member.key"

    def key_id(self, audience: str) -> str:
        """Of the authority's key, as certificates name who signed them."""
        file = str(self.folder / f"{audience}-ca.pem")
        return key_id(
            host(["openssl", "x509", "-in", file, "-noout", "-ext", "subjectKeyIdentifier"])
        )


def key_id(text: str) -> str:
    """The identifier in what OpenSSL prints."""
    found = re.search(r"[0-9A-F]{2}(:[0-9A-F]{2}){15,}", text)
    return found.group() if found else ""


class Shown:
    """The certificate that a port shows."""

    def __init__(self, kube: Kube, address: str, port: int) -> None:
        """Connects, and looks at it."""
        connect = f"openssl s_client -connect {address}:{port} </dev/null 2>/dev/null"
        show = "openssl x509 -noout -serial -ext authorityKeyIdentifier,subjectAltName"
        self.text = kube.text("run", "sh", "-c", f"{connect} | {show}")
        self.serial = self.text.split("serial=", 1)[1].split()[0]
        self.signed_by = key_id(self.text)


def lets_in(kube: Kube, address: str, port: int, pair: Pair) -> bool:
    """Whether a port of members goes on with one who shows that certificate."""
    cert, key = pair
    command = ("run", "timeout", PATIENCE, "openssl", "s_client", "-quiet", "-alpn", "h2")
    shown = ("-connect", f"{address}:{port}", "-cert", str(cert), "-key", str(key))
    client = subprocess.Popen(
        [str(kube.script), *command, *shown],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    # Its input stays open: it waits for what the server says.
    code = client.wait(60)
    if client.stdin:
        client.stdin.close()
    return code == TIMED_OUT
