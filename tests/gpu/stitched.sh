#!/usr/bin/env bash
# Stitched wholes on this machine's GPU, of programs that `carry.sh pack` packed.
#
#   tests/gpu/stitched.sh DIR [LAYERS]
#
# Models in pieces against the same as a whole, pieces against the interpreter, and
# the time that stitching adds to a forward of the 16-layer Qwen3-shaped model at 1
# and at 256 tokens, through `kiln::exec` and through `kiln_torch.load`.
set -euo pipefail
[ $# -ge 1 ] || { sed -n '2,9s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2; exit 2; }
packed=$1 layers=${2:-16}
here=$(dirname "${BASH_SOURCE[0]}")
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
export PYTHONPATH=python:$here${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
failed=0
for tokens in 1 256; do
    python3 "$here/export_qwen3.py" "$layers" "$tokens" "$scratch/qwen3_$tokens.pt2"
    KILN_MODEL=$scratch/qwen3_$tokens.pt2 KILN_STITCHED_OUT=$scratch/qwen3_$tokens \
        "$here/carry.sh" run "$packed" stitching_adds_little || failed=1
    python3 "$here/check_stitched.py" "$scratch/qwen3_$tokens" || failed=1
done
"$here/carry.sh" run "$packed" stitched_models || failed=1
"$here/carry.sh" run "$packed" each_piece || failed=1
exit "$failed"
