#!/bin/sh
# Stands for a program with a JIT cache folder: it compiles what the folder lacks, then runs it.
#
#   kiln run --dir kernels="$PWD/kernels" -- sh tests/examples/jit.sh kernels
set -eu
mkdir -p "$1"
if [ ! -x "$1/answer" ]; then
    echo "cold: compiling"
    echo 'int main(void) { return 42; }' >"$1/answer.c"
    cc -o "$1/answer" "$1/answer.c"
fi
"$1/answer" || echo "the answer is $?"
