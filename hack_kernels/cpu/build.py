"""`python -m hack_kernels.cpu.build`: compiles the native kernels with g++, in place. setup.py takes sources and flags from here.

This file needs the standard library alone: setup.py runs it where torch is not installed.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

FOLDER = Path(__file__).parent
NATIVE = FOLDER / "native"
NAME = "_native"
# No fused multiply-add that the source does not ask for: pages must be equal to the byte everywhere.
FLAGS = (
    "-O3",
    "-std=c++17",
    "-fopenmp",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fno-exceptions",
    "-fno-rtti",
    "-fvisibility=hidden",
    "-g0",
    "-Wno-psabi",
    "-Wno-ignored-attributes",
    "-Wno-maybe-uninitialized",
    "-Wno-uninitialized",
)
LINK_FLAGS = ("-fopenmp",)


def sources() -> list[Path]:
    return sorted(NATIVE.glob("*.cpp"))


def headers() -> list[Path]:
    return sorted(NATIVE.glob("*.h"))


def source_digest() -> str:
    """Of every source: compiled into the library, so that one built from other sources is noticed."""
    digest = hashlib.sha256()
    for path in (*headers(), *sources()):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def flags() -> list[str]:
    return [*FLAGS, f'-DPACKHORSE_SOURCES="{source_digest()}"']


def compiler() -> str | None:
    """The C++ compiler: $CXX, else g++; None where there is none."""
    return shutil.which(os.environ.get("CXX") or "g++")


def library_path() -> Path:
    """Where an in-place build lies: the name that setuptools gives an extension module."""
    return FOLDER / f"{NAME}{sysconfig.get_config_var('EXT_SUFFIX')}"


def build() -> Path:
    """Compiles every source into `library_path()`. Raises RuntimeError without a compiler, CalledProcessError where it fails."""
    command = compiler()
    if command is None:
        raise RuntimeError("no C++ compiler: g++ is not on the PATH")
    path = library_path()
    unfinished = path.with_name(f"{path.name}.{os.getpid()}")
    arguments = [*flags(), "-fPIC", "-shared", *map(str, sources()), "-o", str(unfinished)]
    try:
        subprocess.run([command, *arguments], check=True)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    return path


def main() -> None:
    """Prints where the library lies, or fails with one line."""
    try:
        print(build())
    except (RuntimeError, subprocess.CalledProcessError) as error:
        sys.exit(f"hack_kernels: the native kernels were not built: {error}")


if __name__ == "__main__":
    main()
