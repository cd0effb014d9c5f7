#!/usr/bin/env bash
# in_memory.sh COMMAND...: runs it with its temporary folders in memory, where there is room.
#
# Hundreds of nodes that start on empty folders make and remove tens of thousands of files; on a
# disk that is most of what the kernel has to do for the tests. A TMPDIR that was set is kept.
set -euo pipefail

# More than all tests that run at once were seen to need; in kibibytes.
least=$((4 << 20))
room() { df --output=avail -k "$1" 2>/dev/null | tail -n 1; }
available() { sed -n 's/^MemAvailable: *\([0-9]*\) kB$/\1/p' /proc/meminfo; }

folder=
if [ -z "${TMPDIR:-}" ] && [ "$(stat -f -c %T /dev/shm 2>/dev/null)" = tmpfs ] &&
    [ "$(room /dev/shm)" -ge $least ] && [ "$(available)" -ge $((2 * least)) ]; then
    folder=$(mktemp -d /dev/shm/kiln-tests-XXXXXX)
    trap 'rm -rf "$folder"' EXIT
    # Tests write programs and run them.
    printf '#!/bin/sh\n' >"$folder/run" && chmod +x "$folder/run"
    if "$folder/run" 2>/dev/null; then
        export TMPDIR=$folder
        echo "in_memory.sh: temporary folders are in $folder" >&2
    fi
    rm "$folder/run"
fi
"$@"
