"""Mega-caches: all that a process compiled, saved and loaded in one piece.

``torch.compiler.save_cache_artifacts`` puts the entries of all of Inductor's
caches into one blob; here it goes to the cluster under a tag of the user's.
Call ``load_mega_cache`` before the first compile, ``save_mega_cache`` after the
warm-up.

Invariant: a blob is loaded only if a trusted node signed it and every byte is
as it was signed, and only by the torch, on the kind of device, that made it.
"""

from __future__ import annotations

import time

import torch
from blake3 import blake3

from . import report
from .client import Client
from .key import VALUE, key_of, value_components
from .manifest import Fingerprint, Target
from .options import versions

# Where RESP clients have a value, too.
_BLOB = "value"
_started = time.monotonic()


def save_mega_cache(tag: str) -> bool:
    """Publish what this process compiled under ``tag``; ``False`` where nothing was published.

    Replaces what another process saved under this tag.
    """
    client = Client.from_env()
    if client is None:
        return False
    try:
        saved = torch.compiler.save_cache_artifacts()
        blob = saved[0] if saved is not None else b""
        components = value_components(client.namespace, _name(tag))
    except Exception as error:
        report.count("mega.failed")
        report.once("mega save", "the mega-cache is not saved: %r", error)
        return False
    if not blob:
        # Others would take it for a hit, and compile.
        report.count("mega.empty")
        return False
    done = client.publish(
        None,
        components,
        {_BLOB: blob},
        fingerprint=Fingerprint(VALUE),
        target=Target.any(),
        label=f"mega-cache {tag}",
        # What it saves at most: this process's life so far.
        seconds=time.monotonic() - _started,
        replace=True,
    )
    report.count("mega.saved" if done else "mega.failed")
    return done


def load_mega_cache(tag: str) -> bool:
    """Fill torch's caches with what was saved under ``tag``; ``False`` for a miss."""
    client = Client.from_env()
    if client is None:
        return False
    try:
        components = value_components(client.namespace, _name(tag))
        artifact = client.fetch(key_of(components))
        if artifact is None:
            return False
        loaded = torch.compiler.load_cache_artifacts(bytes(artifact.file(_BLOB)))
    except Exception as error:
        report.count("mega.failed")
        report.once("mega load", "the mega-cache is not loaded: %r", error)
        return False
    if loaded is None:
        report.count("mega.failed")
        return False
    report.count("mega.loaded")
    client.loaded([artifact.key])
    return True


def _name(tag: str) -> str:
    """Name the blob: by the tag, and by what its entries are only valid for."""
    types = {"cpu"} | ({"cuda"} if torch.cuda.is_available() else set())
    facts = blake3(repr(versions(types)).encode()).hexdigest()
    return f"mega-cache/{tag}/{facts[:32]}"
