#!/usr/bin/env bash
# GPU tests on a machine without Rust: packed here, run there.
#
#   tests/gpu/carry.sh pack DIR [PROFILE]   builds the tests and the binary into DIR
#   tests/gpu/carry.sh run DIR [ARGS]       runs the tests in DIR on this machine's GPU
#   tests/gpu/carry.sh kiln DIR             unpacks the binary; prints its path
#
# Both run in the repository, whose fixtures travel with it. ARGS are the test
# program's: the name of a test, --list. Both programs are stripped and packed: a
# tenth of what cargo leaves.
set -euo pipefail

usage() {
    sed -n '2,12s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2
    exit 2
}
[ $# -ge 2 ] || usage
command=$1 folder=$2
shift 2

pack() { # SOURCE NAME
    local stripped
    stripped=$(mktemp)
    strip -o "$stripped" "$1"
    xz -T0 -3 -c "$stripped" >"$folder/$2.xz"
    rm -f "$stripped"
    ls -l "$folder/$2.xz" >&2
}

unpack() { # NAME
    local to=$folder/.unpacked
    mkdir -p "$to"
    [ "$to/$1" -nt "$folder/$1.xz" ] || {
        # A GPU machine has Python rather than xz.
            python3 -c 'import lzma, shutil, sys
shutil.copyfileobj(lzma.open(sys.argv[1]), open(sys.argv[2], "wb"))' "$folder/$1.xz" "$to/$1"
        chmod +x "$to/$1"
    }
    echo "$to/$1"
}

case $command in
    pack)
        mkdir -p "$folder"
        profile=${1:-dev}
        built=$(cargo test --locked --profile "$profile" --package kiln --test gpu --no-run \
            --message-format json | python3 -c '
import json, sys
for line in sys.stdin:
    told = json.loads(line)
    if told.get("executable") and told["target"]["name"] == "gpu":
        print(told["executable"])')
        [ -n "$built" ] || { echo "no test program was built" >&2; exit 1; }
        pack "$built" gpu
        # The binary that cargo built beside the tests.
        pack "$(dirname "$built")/../kiln" kiln
        ;;
    run)
        KILN_FIXTURES=${KILN_FIXTURES:-$PWD/tests/fixtures} \
            "$(unpack gpu)" --ignored --nocapture --test-threads 1 "$@"
        ;;
    kiln)
        unpack kiln
        ;;
    *) usage ;;
esac
