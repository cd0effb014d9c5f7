"""What decides a cache folder's content, as far as this interpreter knows; imports nothing big."""

import json
import os
import platform
import re
import sys
from importlib import metadata
from importlib.util import find_spec

PACKAGES = {
    "torch": ["torch"],
    "triton": ["triton", "pytorch-triton", "triton-nightly"],
    "vllm": ["vllm"],
    "flashinfer": ["flashinfer-python", "flashinfer"],
    "deep_gemm": ["deep-gemm"],
}


def version(names):
    for name in names:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            pass
    return None


def torch_build():
    """The CUDA version and commit that torch was built with, which its own version need not tell."""
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        return ""
    try:
        with open(os.path.join(os.path.dirname(spec.origin), "version.py")) as file:
            text = file.read()
    except OSError:
        return ""
    found = (re.search(rf"^{name}\b.*?= '([^']*)'", text, re.M) for name in ("cuda", "hip", "git_version"))
    return "".join(" " + match[1][:12] for match in found if match)


answer = {
    # The patch level changes neither bytecode nor binary interface.
    "python": sys.implementation.cache_tag + " " + platform.machine(),
    "libc": " ".join(platform.libc_ver()),
}
for tool, names in PACKAGES.items():
    found = version(names)
    if found is not None:
        answer[tool] = found + torch_build() if tool == "torch" else found
print(json.dumps(answer))
