"""The disk cache on one machine: an artifact is one file of ``cache_dir``.

A file is a line that names the format, the length of the signed manifest, the
manifest, then the pack: the same manifest and pack as a node stores.
Invariant: a file is whole or not there; no byte of it is used before the
manifest's signature by this user's key, its key and all digests were checked. What a
later version wrote in a format of its own is a miss, and stays for that version.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import time
from pathlib import Path
from typing import TYPE_CHECKING

from .. import manifest, report
from ..errors import Refused
from ..manifest import Artifact
from ..wire import SignedManifest
from .errors import CacheCorruptedError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..packing import Packed
    from .signing import LocalKey

SUFFIX = ".kiln"
_FORMAT = b"kiln-entry-1\n"
_NUMBER = 1
_LONGEST_LINE = 32
# How an entry of any version begins.
_ANY_FORMAT = re.compile(rb"kiln-entry-(\d{1,9})\n")
_LENGTH = 8
_LARGEST_MANIFEST = 16 << 20
# Seconds after which a temporary file is nobody's.
_ABANDONED = 3600.0


class LaterFormat(Refused):
    """The entry is in the format of a later version."""


class LocalCache:
    """Entries by file name, which is the full key in hex."""

    def __init__(self, folder: Path, key: LocalKey, limit: int) -> None:
        """Keep at most ``limit`` bytes in ``folder``."""
        self.folder = folder
        self._key = key
        self._limit = limit
        folder.mkdir(parents=True, exist_ok=True)

    def read(self, filename: str, key: bytes) -> Artifact | None:
        """Return the verified artifact; C002: it is corrupt.

        ``None``: there is no such file, or it is in the format of a later version.
        """
        path = self.folder / filename
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise CacheCorruptedError(f"{path.name} cannot be read: {error}") from error
        try:
            found = self._verified(memoryview(data), key)
        except LaterFormat as error:
            report.count("compilation.later_format")
            report.once("format", "%s: %s; compiled again", path.name, error)
            return None
        except Refused as error:
            raise CacheCorruptedError(f"{path.name}: {error}") from error
        with contextlib.suppress(OSError):
            # What was used last goes last.
            os.utime(path)
        return found

    def write(self, filename: str, packed: Packed) -> Path | None:
        """Store an artifact: durable, and in one step, when this returns.

        ``None``: a later version has an entry of this name, which stays.
        """
        signed = self._key.sign(packed.manifest).SerializeToString()
        path = self.folder / filename
        if _is_later(path):
            report.count("compilation.later_format")
            return None
        temporary = path.with_name(f".{filename}.{secrets.token_hex(8)}")
        try:
            with temporary.open("xb") as file:
                file.write(_FORMAT + len(signed).to_bytes(_LENGTH, "big") + signed)
                file.writelines(packed.parts)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        _sync(self.folder)
        self._trim(path)
        return path

    def delete(self, filename: str) -> bool:
        """Remove an entry; ``False``: it cannot be, and is not to be asked for again."""
        try:
            (self.folder / filename).unlink(missing_ok=True)
        except OSError as error:
            report.count("compilation.unsaved")
            report.once("delete", "not removed: %s", error)
            return False
        return True

    def set_limit(self, limit: int) -> None:
        """Keep at most ``limit`` bytes from now on."""
        self._limit = limit

    @property
    def limit(self) -> int:
        """Bytes that are kept at most."""
        return self._limit

    def sweep(self) -> tuple[int, int]:
        """Check every entry and delete what is no use; return how many there were, and went.

        An entry in the format of a later version is left to that one.
        """
        checked = removed = 0
        for path in [*self.folder.glob(f"*{SUFFIX}"), *self.folder.glob(f".*{SUFFIX}.*")]:
            checked += 1
            try:
                whole = not path.name.startswith(".")
                if whole and self._verified(
                    memoryview(path.read_bytes()), bytes.fromhex(path.stem)
                ):
                    continue
                if not whole and time.time() - path.stat().st_mtime < _ABANDONED:
                    # Somebody may be writing it.
                    continue
            except (FileNotFoundError, LaterFormat):
                continue
            except (Refused, OSError, ValueError) as error:
                report.log.warning("%s is removed: %s", path.name, error)
            with contextlib.suppress(OSError):
                path.unlink()
                removed += 1
        return checked, removed

    def size(self) -> int:
        """Bytes of all entries."""
        return sum(size for _, size, _ in self._entries())

    def _verified(self, data: memoryview, key: bytes) -> Artifact:
        start = len(_FORMAT) + _LENGTH
        if number := _later(data):
            raise LaterFormat(f"format {number}, which a later version of Kiln wrote")
        if bytes(data[: len(_FORMAT)]) != _FORMAT or len(data) < start:
            raise Refused("no entry of this format")
        length = int.from_bytes(data[len(_FORMAT) : start], "big")
        if not 0 < length <= min(_LARGEST_MANIFEST, len(data) - start):
            raise Refused("it is cut off")
        try:
            signed = SignedManifest.FromString(bytes(data[start : start + length]))
        except Exception as error:
            raise Refused("the signed manifest cannot be read") from error
        described = manifest.verify(signed, (self._key.public,), key)
        return Artifact.verified(described, data[start + length :], "disk")

    def _entries(self) -> Iterator[tuple[float, int, Path]]:
        for path in self.folder.glob(f"*{SUFFIX}"):
            try:
                facts = path.stat()
            except OSError:
                continue
            yield facts.st_mtime, facts.st_size, path

    def _trim(self, keep: Path) -> None:
        entries = sorted(self._entries())
        total = sum(size for _, size, _ in entries)
        for _, size, path in entries:
            if total <= self._limit:
                return
            if path != keep:
                path.unlink(missing_ok=True)
                total -= size
                report.count("compilation.disk_evicted")


def _later(data: bytes | memoryview) -> int:
    """Return the number of an entry's format where it is above this one's, else 0."""
    written = _ANY_FORMAT.match(data)
    number = 0 if written is None else int(written[1])
    return number if number > _NUMBER else 0


def _is_later(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return _later(file.read(_LONGEST_LINE)) != 0
    except OSError:
        return False


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
