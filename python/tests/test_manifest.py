"""No byte counts that a trusted node did not sign for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from blake3 import blake3
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from kiln_torch import manifest, wire
from kiln_torch.errors import Refused
from kiln_torch.key import key_of, value_components
from kiln_torch.manifest import SIGNING_CONTEXT, Artifact, Fingerprint, Target, check_path
from kiln_torch.packing import pack

COMPONENTS = value_components("default", "m")
KEY = key_of(COMPONENTS)
FILES = {"a/one": b"first", "b": b"second" * 100}
NODE = 7
SIGNING = Ed25519PrivateKey.generate()
PUBLIC = SIGNING.public_key().public_bytes_raw()


def unsigned(files: dict[str, bytes] | None = None) -> Any:
    """Make the message that a node would sign."""
    packed = pack(
        COMPONENTS,
        FILES if files is None else files,
        fingerprint=Fingerprint("value"),
        target=Target.any(),
        namespace="default",
        label="m",
        seconds=0.5,
    )
    packed.manifest.producer = NODE
    return packed.manifest


def sign(message: Any, key: Ed25519PrivateKey = SIGNING) -> Any:
    """Sign as node 7."""
    data = message.SerializeToString()
    signature = key.sign(SIGNING_CONTEXT + data)
    return wire.SignedManifest(manifest=data, signer=NODE, signature=signature)


def verify(signed: Any) -> manifest.Manifest:
    """Verify for the key that was asked for."""
    return manifest.verify(signed, [PUBLIC], KEY)


def test_what_was_signed_is_what_is_read() -> None:
    """And its files are those that were packed."""
    read = verify(sign(unsigned()))
    assert (read.key, read.label, read.target, read.producer) == (KEY, "m", "any", NODE)
    artifact = Artifact.verified(read, memoryview(b"".join(FILES.values())), "memory")
    assert {path: bytes(data) for path, data in artifact.files.items()} == FILES
    assert artifact.file("b") == FILES["b"]
    with pytest.raises(KeyError):
        artifact.file("c")


def test_an_altered_manifest_is_refused() -> None:
    """Whichever byte is altered."""
    signed = sign(unsigned())
    for at in range(0, len(signed.manifest), 5):
        altered = bytearray(signed.manifest)
        altered[at] ^= 1
        with pytest.raises(Refused):
            verify(
                wire.SignedManifest(
                    manifest=bytes(altered), signer=NODE, signature=signed.signature
                )
            )


def test_a_stranger_cannot_sign() -> None:
    """Nor is a signature valid without its context."""
    with pytest.raises(Refused, match="signature"):
        verify(sign(unsigned(), Ed25519PrivateKey.generate()))
    data = unsigned().SerializeToString()
    bare = wire.SignedManifest(manifest=data, signer=NODE, signature=SIGNING.sign(data))
    with pytest.raises(Refused, match="signature"):
        verify(bare)
    with pytest.raises(Refused, match="signature"):
        manifest.verify(sign(unsigned()), [], KEY)


def test_another_keys_manifest_is_refused() -> None:
    """A node that answers with something else it signed is not believed."""
    with pytest.raises(Refused, match="is for key"):
        manifest.verify(sign(unsigned()), [PUBLIC], b"\1" * 32)


def _set(path: str, value: Any) -> Callable[[Any], None]:
    def change(message: Any) -> None:
        setattr(message.files[0], path, value)

    return change


BROKEN: dict[str, Callable[[Any], None]] = {
    "no files": lambda m: m.ClearField("files"),
    "escape": _set("path", "../escape"),
    "absolute": _set("path", "/etc/passwd"),
    "empty part": _set("path", "a//b"),
    "backslash": _set("path", "a\\b"),
    "control": _set("path", "a\nb"),
    "gap": _set("offset", 1),
    "not covered": lambda m: setattr(m, "pack_size", m.pack_size + 1),
    "order": lambda m: setattr(m.files[1], "path", "a/a"),
    "twice": lambda m: setattr(m.files[1], "path", "a/one"),
    "key": lambda m: setattr(m, "key", b"\0" * 32),
    "component": lambda m: setattr(m.components[0], "digest", b"\0" * 32),
    "producer": lambda m: setattr(m, "producer", NODE + 1),
    "cost": lambda m: setattr(m, "compile_seconds", float("nan")),
    "digest": _set("digest", b"short"),
}


@pytest.mark.parametrize("how", BROKEN)
def test_what_is_signed_and_wrong_is_refused(how: str) -> None:
    """A signature makes nothing valid that is not."""
    message = unsigned()
    BROKEN[how](message)
    with pytest.raises(Refused):
        verify(sign(message))


def test_pieces_are_read_and_each_comes_once() -> None:
    """In their order; none is the whole."""

    def read(*keys: bytes) -> manifest.Manifest:
        message = unsigned()
        for key in keys:
            message.pieces.add(key=key, pack_digest=b"p" * 32, pack_size=9)
        return verify(sign(message))

    assert read().pieces == ()
    pieces = read(b"b" * 32, b"a" * 32).pieces
    assert [piece.key for piece in pieces] == [b"b" * 32, b"a" * 32]
    assert (pieces[0].pack, pieces[0].size) == (b"p" * 32, 9)
    many = [at.to_bytes(32, "big") for at in range(manifest.MAX_PIECES + 1)]
    for keys in ([b"a" * 32, b"a" * 32], [KEY], [b"short"], many):
        with pytest.raises(Refused, match="piece"):
            read(*keys)


def test_altered_bytes_are_refused() -> None:
    """By the pack's digest, and by each file's."""
    read = verify(sign(unsigned()))
    good = b"".join(FILES.values())
    for bad in (good[:-1], good + b"x", b"F" + good[1:], b""):
        with pytest.raises(Refused):
            Artifact.verified(read, memoryview(bad), "memory")
    message = unsigned()
    message.files[0].digest = blake3(b"other").digest()
    with pytest.raises(Refused, match="a/one"):
        Artifact.verified(verify(sign(message)), memoryview(good), "memory")
    single = unsigned({"value": b"x"})
    with pytest.raises(Refused, match="not those of the manifest"):
        Artifact.verified(verify(sign(single)), memoryview(b"y"), "memory")
    single.files[0].digest = blake3(b"other").digest()
    with pytest.raises(Refused, match="value"):
        Artifact.verified(verify(sign(single)), memoryview(b"x"), "memory")


def test_paths_stay_inside_a_folder() -> None:
    """As ``check_path`` in ``proto/src/manifest.rs``."""
    for good in ("a", "a/b.c", "..a/b", "a..b", "x" * 1024):
        assert check_path(good) is None, good
    for bad in ("", "/a", "a/", "a//b", ".", "..", "a/../b", "a\\b", "a\0", "a\n", "x" * 1025):
        assert check_path(bad) is not None, bad
    with pytest.raises(ValueError, match="escape"):
        unsigned({"../escape": b""})


def test_targets_are_read_as_shown() -> None:
    """As in ``proto/src/target.rs``."""
    for text in ("sm_90", "sm_90a", "compute_120", "gpu_90", "any"):
        assert str(Target.parse(text)) == text
    for text in ("", "sm_", "cpu_90", "anya", "sm_x"):
        with pytest.raises(ValueError, match="no target"):
            Target.parse(text)
