"""Kiln's wire format, from the descriptors that ``proto/`` compiles to.

No generated code: ``kiln.binpb`` is a FileDescriptorSet, and any protobuf from
4.25 on reads it. ``make python-wire`` writes it anew; a Rust test fails while it
is older than ``proto/``.
Invariant: descriptors live in a pool of their own, so that no other package's
``kiln.v1`` can collide with these.
"""

from __future__ import annotations

from importlib import resources
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_PACKAGE = "kiln.v1"


def _load() -> descriptor_pool.DescriptorPool:
    pool = descriptor_pool.DescriptorPool()
    data = resources.files("kiln_torch").joinpath("kiln.binpb").read_bytes()
    for file in descriptor_pb2.FileDescriptorSet.FromString(data).file:
        pool.AddSerializedFile(file.SerializeToString())
    return pool


_pool = _load()


def _message(name: str) -> Any:
    return message_factory.GetMessageClass(_pool.FindMessageTypeByName(f"{_PACKAGE}.{name}"))


def _enum(name: str) -> dict[str, int]:
    values = _pool.FindEnumTypeByName(f"{_PACKAGE}.{name}").values
    prefix = "".join(f"_{c}" if c.isupper() else c for c in name).upper().lstrip("_") + "_"
    return {value.name.removeprefix(prefix): value.number for value in values}


Manifest = _message("Manifest")
SignedManifest = _message("SignedManifest")
CompileRequest = _message("CompileRequest")
CompileEvent = _message("CompileEvent")
LookupRequest = _message("LookupRequest")
LookupResponse = _message("LookupResponse")
FetchRequest = _message("FetchRequest")
FetchChunk = _message("FetchChunk")
LeaseRequest = _message("LeaseRequest")
LeaseEvent = _message("LeaseEvent")
PublishChunk = _message("PublishChunk")
PublishResponse = _message("PublishResponse")
LoadedRequest = _message("LoadedRequest")
LoadedResponse = _message("LoadedResponse")
StatusRequest = _message("StatusRequest")
StatusResponse = _message("StatusResponse")
RootStatement = _message("RootStatement")
MetricsRequest = _message("MetricsRequest")
MetricsResponse = _message("MetricsResponse")
CompilationMetrics = _message("CompilationMetrics")
TransferRequest = _message("TransferRequest")
TransferResponse = _message("TransferResponse")

# By their names without the prefix: KINDS["CUBIN"].
KINDS = _enum("BinaryKind")
TIERS = {number: name.lower() for name, number in _enum("Tier").items()}
TRANSFER_CODES = _enum("TransferCode")
