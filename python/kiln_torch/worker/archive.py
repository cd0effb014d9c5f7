"""A torch.export archive: the program's JSON, and the tensors baked into it.

Invariant: nothing in it is unpickled, and every size in it was checked before torch
sees the program.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from typing import Any

from .expression import check_expression
from .refused import INVALID_INPUT, Refused


def open_archive(archive: bytes) -> tuple[zipfile.ZipFile, str, str]:
    """The archive, the folder of its entries, and the name of its one model."""
    try:
        opened = zipfile.ZipFile(io.BytesIO(archive))
        found = re.compile(r"^(.*)models/([^/]+)\.json$")
        models = [m for m in map(found.match, opened.namelist()) if m]
    except zipfile.BadZipFile as e:
        raise Refused(INVALID_INPUT, f"not a .pt2 archive: {e}") from e
    if len(models) != 1:
        raise Refused(INVALID_INPUT, f"{len(models)} models in the archive; give one")
    return opened, models[0][1], models[0][2]


def moved(node: Any, device: str) -> Any:
    """A program's JSON, its sizes checked, on `device`."""
    if isinstance(node, list):
        return [moved(item, device) for item in node]
    if not isinstance(node, dict):
        return node
    if set(node) == {"type", "index"} and node["type"] in ("cpu", "cuda"):
        return {"type": device, "index": 0 if device == "cuda" else None}
    if isinstance(node.get("expr_str"), str):
        check_expression(node["expr_str"])
    return {name: moved(value, device) for name, value in node.items()}


def read_constants(opened: zipfile.ZipFile, prefix: str, model: str, device: str) -> dict[str, Any]:
    """Tensors baked into the program. Those that are pickled are left out, unread."""
    import torch
    from torch._export.serde import serialize

    try:
        listed = json.loads(opened.read(f"{prefix}data/constants/{model}_constants_config.json"))
    except KeyError:
        return {}
    found = {}
    for name, entry in listed.get("config", {}).items():
        meta = entry.get("tensor_meta")
        if entry.get("use_pickle") or not meta or "/" in entry["path_name"]:
            continue
        dtype = serialize._SERIALIZE_TO_TORCH_DTYPE[meta["dtype"]]
        sizes = [size["as_int"] for size in meta["sizes"]]
        strides = [stride["as_int"] for stride in meta["strides"]]
        data = bytearray(opened.read(f"{prefix}data/constants/{entry['path_name']}"))
        flat = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
        found[name] = flat.as_strided(sizes, strides).to(device)
    return found
