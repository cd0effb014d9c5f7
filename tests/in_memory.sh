#!/usr/bin/env bash
# in_memory.sh COMMAND...: runs it with its temporary folders in memory, where there is room.
#
# Hundreds of nodes that start on empty folders make and remove tens of thousands of files; on a
# disk that is most of what the kernel has to do for the tests. A TMPDIR that was set is kept.
set -euo pipefail

# In GiB. A test that fills a disk takes up to five.
least_room=8
least_memory=12

room() { echo $(($(df --output=avail -k "$1" 2>/dev/null | tail -n 1) >> 20)); }

# What is left of the machine's memory, or of the container's where that is less.
memory() {
    local left limit used
    left=$(($(sed -n 's/^MemAvailable: *\([0-9]*\) kB$/\1/p' /proc/meminfo) >> 20))
    limit=$(cat /sys/fs/cgroup/memory.max 2>/dev/null || echo max)
    if [ "$limit" != max ]; then
        used=$(cat /sys/fs/cgroup/memory.current)
        limit=$(((limit - used) >> 30))
        [ "$limit" -ge "$left" ] || left=$limit
    fi
    echo "$left"
}

# Of runs that were killed: each folder has its process in its name.
sweep() {
    local left
    for left in /dev/shm/kiln-tests-"$UID"-*; do
        [ -O "$left" ] && [ ! -L "$left" ] && ! kill -0 "${left##*-}" 2>/dev/null && rm -rf "$left"
    done
    true
}

# Where there is an NVIDIA driver, compilers and checkers may write there: see src/compiler/sandbox.
if [ -z "${TMPDIR:-}" ] && [ ! -e /dev/nvidiactl ] &&
    [ "$(stat -f -c %T /dev/shm 2>/dev/null)" = tmpfs ]; then
    sweep
    folder=/dev/shm/kiln-tests-$UID-$$
    if [ "$(room /dev/shm)" -ge $least_room ] && [ "$(memory)" -ge $least_memory ] &&
        mkdir -m 700 "$folder" 2>/dev/null; then
        trap 'rm -rf "$folder" || true' EXIT
        trap : TERM INT HUP # What it runs ends first.
        # Tests write programs and run them.
        printf '#!/bin/sh\n' >"$folder/run" && chmod +x "$folder/run"
        if "$folder/run" 2>/dev/null; then
            export TMPDIR=$folder
            echo "in_memory.sh: temporary folders are in $folder" >&2
        fi
        rm -f "$folder/run"
    fi
fi
"$@"
