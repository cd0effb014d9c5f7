"""Compiles librocksdb-sys's RocksDB into one archive: CRATE LZ4_INCLUDE LEVEL ARCHIVE.

The crate compiles its 340 files one by one, and most of that time goes into headers that all of
them read again. Here a few units include many files each, in the crate's own order, with the
crate's own defines. LEVEL is the compiler's optimisation: the crate has 2.

Invariant: ARCHIVE is whole or not there, and names no folder of this machine.
"""

import hashlib
import os
import shlex
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

# The build script whose defines and flags stand below, for Linux and for Cargo.toml's features.
BUILD_SCRIPT = "2dbb97b102a2c13f0192ee75a49d4fc0f84fa0692ac9ffc84d364a7a28b472a3"
DEFINES = (
    "LZ4=1",
    "NDEBUG=1",
    "HAVE_ALIGNED_NEW",
    "HAVE_UINT128_EXTENSION",
    "OS_LINUX",
    "ROCKSDB_PLATFORM_POSIX",
    "ROCKSDB_LIB_IO_POSIX",
    "ROCKSDB_SCHED_GETCPU_PRESENT",
    "ROCKSDB_AUXV_GETAUXVAL_PRESENT",
    "ROCKSDB_FALLOCATE_PRESENT",
    "ROCKSDB_RANGESYNC_PRESENT",
)
FLAGS = ("-w", "-ffunction-sections", "-fdata-sections", "-fPIC", "-std=c++20")
FLAGS += ("-include", "cstdint")
# A unit takes up to this many bytes while it compiles (gcc 12, a unit of a quarter).
UNIT_BYTES = 3 << 30


def main() -> None:
    """Writes ARCHIVE; progress goes to stderr."""
    crate, lz4 = (Path(word).resolve() for word in sys.argv[1:3])
    level, archive = int(sys.argv[3]), Path(sys.argv[4]).resolve()
    script = hashlib.sha256((crate / "build.rs").read_bytes()).hexdigest()
    if script != BUILD_SCRIPT:
        raise SystemExit(
            f"{crate.name} has another build script: compare its defines with those of {__file__}, "
            f"then put its digest there: {script}"
        )
    sources = (crate / "rocksdb_lib_sources.txt").read_text(encoding="utf-8").split()
    # The crate has one of its own, beside the script.
    sources = [f"rocksdb/{name}" for name in sources if name != "util/build_version.cc"]
    cores = len(os.sched_getaffinity(0))
    units = [*divided(crate, sources, max(4, 2 * cores)), ["build_version.cc"]]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    with (
        tempfile.TemporaryDirectory(dir=archive.parent) as scratch,
        ThreadPoolExecutor(max(1, min(cores, memory // UNIT_BYTES))) as pool,
    ):
        objects: list[Path] = []
        jobs = [
            pool.submit(compiled, crate, lz4, level, unit, Path(scratch) / f"unit-{number}")
            for number, unit in enumerate(units)
        ]
        for count, job in enumerate(as_completed(jobs), 1):
            try:
                objects += job.result()
            except Refused as refused:
                pool.shutdown(cancel_futures=True)
                raise SystemExit(str(refused)) from None
            print(f"toolchain: RocksDB: {count} of {len(jobs)} units", file=sys.stderr, flush=True)
        whole = Path(scratch) / archive.name
        subprocess.run([os.environ.get("AR", "ar"), "crs", whole, *sorted(objects)], check=True)
        whole.replace(archive)


class Refused(Exception):
    """The compiler does not take a file even alone; its own words."""


def divided(crate: Path, sources: list[str], count: int) -> list[list[str]]:
    """`sources` in order, in `count` runs of about the same number of bytes."""
    sizes = [(crate / name).stat().st_size for name in sources]
    units: list[list[str]] = [[] for _ in range(count)]
    before = 0
    for name, size in zip(sources, sizes):
        units[count * before // sum(sizes)].append(name)
        before += size
    return [unit for unit in units if unit]


def compiled(crate: Path, lz4: Path, level: int, unit: list[str], stem: Path) -> list[Path]:
    """The objects of `unit`: one, or more where its files do not go together."""
    text, result = stem.with_suffix(".cc"), stem.with_suffix(".o")
    text.write_text("".join(f'#include "{name}"\n' for name in unit), encoding="utf-8")
    includes = [f"-I{crate / folder}" for folder in ("rocksdb/include", "rocksdb", ".")]
    # Messages name the file that they are of.
    flags = [f"-O{level}", *FLAGS]
    flags += [f"-ffile-prefix-map={crate}/=", f"-ffile-prefix-map={stem.parent}/="]
    flags += [f"-D{name}" for name in DEFINES]
    compiler = [*shlex.split(os.environ.get("CXX", "c++")), *flags]
    run = subprocess.run(
        [*compiler, *includes, f"-I{lz4}", "-c", text, "-o", result],
        capture_output=True,
        text=True,
        check=False,
    )
    if run.returncode == 0:
        return [result]
    if len(unit) == 1:
        raise Refused(f"the compiler refused {unit[0]}:\n{run.stderr[-4000:]}")
    # Two files with one name for two things: another compiler, or another release, may see some.
    middle = len(unit) // 2
    halves = (unit[:middle], unit[middle:])
    return [
        made
        for number, half in enumerate(halves)
        for made in compiled(crate, lz4, level, half, stem.with_name(f"{stem.name}-{number}"))
    ]


main()
