#!/usr/bin/env bash
# A Python with vLLM (no kernels: its compilation package is what is tested), torch
# and this checkout's kiln_torch, for `make test-vllm`. Prints its interpreter.
#
#   python=$(deploy/vllm-venv.sh)
#
# About 6 GB and ten minutes the first time, in a folder outside the checkout:
# VLLM_VENV, or ~/.cache/kiln/vllm-<version>. Not part of CI.
set -euo pipefail

vllm=0.33.0
torch=2.14.0
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cache=${KILN_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/kiln}
venv=${VLLM_VENV:-$cache/vllm-$vllm}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

pip() { PIP_DISABLE_PIP_VERSION_CHECK=1 "$venv/bin/python" -m pip --quiet "$@" >&2; }

if [ ! -e "$venv/ready" ]; then
    python3 -m venv "$venv"
    pip install "torch==$torch" "setuptools<81" setuptools-scm setuptools-rust wheel \
        cmake ninja jinja2 packaging
    export VLLM_TARGET_DEVICE=empty VLLM_VERSION_OVERRIDE=$vllm
    pip download --no-deps --no-build-isolation --no-binary vllm --dest "$scratch" "vllm==$vllm"
    tar -xzf "$scratch/vllm-$vllm.tar.gz" -C "$scratch"
    # Registries' mirrors lag behind the newest certificates, which nothing here needs.
    sed -E -i 's/^certifi .*/certifi/' "$scratch/vllm-$vllm/requirements/common.txt"
    pip install -r "$scratch/vllm-$vllm/requirements/common.txt"
    pip install --no-deps --no-build-isolation "$scratch/vllm-$vllm.tar.gz"
    pip install blake3 cryptography grpcio protobuf pytest redis
    touch "$venv/ready"
fi
# From a copy: a build writes beside its sources.
cp -r "$here/python" "$scratch/kiln_torch"
pip install --no-deps --force-reinstall "$scratch/kiln_torch"
echo "$venv/bin/python"
