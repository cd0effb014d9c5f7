"""What a root says of signers, and what somebody else says in its name."""

from __future__ import annotations

import time
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from kiln_torch import config, wire
from kiln_torch.root import certified

ROOT = Ed25519PrivateKey.generate()
KEY = Ed25519PrivateKey.generate().public_key().public_bytes_raw()


def signer(by: Ed25519PrivateKey = ROOT, context: bytes = b"kiln-root-v1\0", **changed: Any) -> Any:
    """Make a signer as a node names it, with a certificate."""
    of = {"key": KEY, "node": 3, "namespaces": ["team", "lab-*"], "not_before_unix_ms": 1}
    of.update(changed)
    statement = wire.RootStatement(serial=1, signer=of).SerializeToString()
    status = wire.StatusResponse()
    made = status.signers.add(node=3, key=KEY)
    made.certificate.statement = statement
    made.certificate.signature = by.sign(context + statement)
    return made


def trusted(made: Any, namespace: str = "team") -> bool:
    """Whether its key is trusted."""
    roots = (bytes(32), ROOT.public_key().public_bytes_raw())
    found = certified([made], roots, namespace)
    assert found in ([], [(3, KEY)])
    return bool(found)


def test_a_certificate_is_for_its_key_its_node_its_namespaces_and_its_time() -> None:
    """What the root lets sign is trusted, and nothing beside it."""
    now = int(time.time() * 1000)
    assert trusted(signer())
    assert trusted(signer(node=0))
    assert trusted(signer(), "lab-a")
    assert trusted(signer(not_after_unix_ms=now + 600_000))
    for namespace in ("teams", "lab", "", "default"):
        assert not trusted(signer(), namespace)
    cases: list[dict[str, Any]] = [
        {"node": 4},
        {"key": bytes(32)},
        {"namespaces": []},
        {"not_before_unix_ms": now + 600_000},
        {"not_after_unix_ms": now - 1000},
    ]
    for wrong in cases:
        assert not trusted(signer(**wrong)), wrong


def test_what_the_root_has_not_signed_is_not_trusted() -> None:
    """Another key, another use of the key, a change, and nothing at all."""
    assert not trusted(signer(Ed25519PrivateKey.generate()))
    assert not trusted(signer(context=b"kiln-manifest-v1\0"))
    changed = signer()
    changed.certificate.statement = changed.certificate.statement.replace(b"team", b"mine")
    assert not trusted(changed, "mine")
    without = signer()
    without.ClearField("certificate")
    assert not trusted(without)
    policy = signer()
    statement = wire.RootStatement(serial=1, root={"required": True}).SerializeToString()
    policy.certificate.statement = statement
    policy.certificate.signature = ROOT.sign(b"kiln-root-v1\0" + statement)
    assert not trusted(policy)


@pytest.mark.parametrize("text", ["zz", "ab", "0" * 63, ",", " , ", " "])
def test_a_root_that_is_no_key_turns_kiln_off(text: str) -> None:
    """Whoever wants a root must not get anybody instead."""
    endpoint = {"KILN_ENDPOINT": "127.0.0.1:1"}
    assert config.from_env({**endpoint, "KILN_ROOT": text}) is None
    read = config.from_env({**endpoint, "KILN_ROOT": KEY.hex()})
    assert read is not None
    assert read.roots == (KEY,)
    both = config.from_env({**endpoint, "KILN_ROOT": f"{KEY.hex()}, {'ab' * 32}"})
    assert both is not None
    assert both.roots == (KEY, bytes.fromhex("ab" * 32))
    assert config.from_env({**endpoint, "KILN_ROOT": f"{KEY.hex()},zz"}) is None
    for nothing in ({}, {"KILN_ROOT": ""}):
        plain = config.from_env({**endpoint, **nothing})
        assert plain is not None
        assert plain.roots == ()
