"""Which system a program needs: read from what it is linked with, by `readelf`.

Invariant: a library or a version that is not in these tables is an error, never a guess.
"""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

# The Debian package of each library that a program may need.
PACKAGES = {
    "ld-linux-x86-64.so.2": "libc6",
    "libc.so.6": "libc6",
    "libm.so.6": "libc6",
    "libgcc_s.so.1": "libgcc-s1",
    "libstdc++.so.6": "libstdc++6",
}
# GLIBCXX_3.4.N: since which gcc there is, and which glibc the first manylinux platform with
# that libstdc++ has (auditwheel's policies).
LIBSTDCXX = {28: (9, 31), 29: (11, 34), 30: (12, 35), 31: (13, 38), 32: (13, 38), 33: (14, 39)}
OLDEST_LIBSTDCXX = 28


@dataclass(frozen=True)
class Needs:
    """What must be there to run it."""

    libraries: tuple[str, ...]
    # 34 of glibc 2.34, 30 of GLIBCXX_3.4.30; none where it is no C++.
    glibc: int
    libstdcxx: int | None

    @classmethod
    def of(cls, program: Path) -> Needs:
        """What `program` says of itself."""
        dynamic = readelf("--dynamic", program)
        libraries = tuple(sorted(re.findall(r"\(NEEDED\).*\[(.+)\]", dynamic)))
        unknown = [name for name in libraries if name not in PACKAGES]
        if unknown or not libraries:
            sys.exit(f"{program} needs {unknown or 'nothing'}: say in {__file__} what that is of")
        versions = readelf("--version-info", program)
        glibc = [int(found) for found in re.findall(r"\bGLIBC_2\.(\d+)", versions)]
        stdcxx = [int(found) for found in re.findall(r"\bGLIBCXX_3\.4\.(\d+)", versions)]
        needs = cls(libraries, max(glibc), max(stdcxx, default=None))
        needs.platform()
        return needs

    def depends(self) -> str:
        """As the field `Depends` of a Debian package."""
        packages = {PACKAGES[name] for name in self.libraries}
        versions = {"libc6": f" (>= 2.{self.glibc})"}
        if self.libstdcxx is not None:
            versions["libstdc++6"] = f" (>= {self._compiler()[0]})"
        return ", ".join(name + versions.get(name, "") for name in sorted(packages))

    def platform(self) -> str:
        """The tag of a wheel: the first manylinux that has all of it."""
        glibc = self.glibc if self.libstdcxx is None else max(self.glibc, self._compiler()[1])
        return f"manylinux_2_{glibc}_x86_64"

    def _compiler(self) -> tuple[int, int]:
        found = LIBSTDCXX.get(max(self.libstdcxx or 0, OLDEST_LIBSTDCXX))
        if found is None:
            sys.exit(f"GLIBCXX_3.4.{self.libstdcxx} is newer than what {__file__} knows: add it")
        return found


def readelf(option: str, program: Path) -> str:
    """What `readelf` prints, in plain English."""
    command = ["readelf", "--wide", option, str(program)]
    environment = {"LC_ALL": "C", "PATH": "/usr/local/bin:/usr/bin:/bin"}
    return subprocess.run(
        command, capture_output=True, text=True, check=True, env=environment
    ).stdout
