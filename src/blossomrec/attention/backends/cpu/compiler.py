"""Compiles C++ for this machine's processor: the operator, once for every shape of heads.

The result lies in a folder of the user's cache under a name that says what it was made from, so
that another source, processor or compiler makes another file.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
from functools import cache
from pathlib import Path

from blossomrec.attention.backends.code_cache import NotBuiltError, cache_folder, check_owner, put

SOURCE = Path(__file__).parent / "source"
OPERATION = SOURCE / "operation.cpp"
COMPILERS = ("c++", "g++", "clang++")
FLAGS = (
    "-std=c++17",
    "-O3",
    "-fopenmp-simd",
    "-ffp-contract=fast",
    "-fno-math-errno",
    "-fno-exceptions",
    "-fno-rtti",
    "-fPIC",
    "-shared",
    "-pthread",
)
# Seconds after which a compiler is taken to hang.
PATIENCE = 120


def build(source: Path = OPERATION, **constants: int) -> Path:
    """The library of a source with these constants, compiled if it is not there yet.

    Args:
        source: may include what lies beside it, or beside the operator's.

    Raises:
        NotBuiltError: there is no compiler, it failed, or the cache folder is not the user's own.
    """
    if os.name != "posix":
        raise NotBuiltError(f"{source.name} is for POSIX systems, this is {platform.system()}")
    folder = cache_folder("cpu")
    command = [*compiler(), *FLAGS, native_flag()]
    command += [f"-D{name}={value}" for name, value in constants.items()]
    library = folder / f"{fingerprint(command, source)}.so"
    if not library.exists():
        _compile(command, source, library)
    check_owner(library)
    return library


def compiler() -> list[str]:
    """The command of the C++ compiler: ``$CXX``, or the first known one that is installed.

    Raises:
        NotBuiltError: there is none.
    """
    chosen = shlex.split(os.environ.get("CXX", ""))
    if chosen:
        if shutil.which(chosen[0]) is None:
            raise NotBuiltError(f"the compiler CXX={chosen[0]} is not found")
        return chosen
    for name in COMPILERS:
        if shutil.which(name):
            return [name]
    raise NotBuiltError(f"no C++ compiler is found ({', '.join(COMPILERS)}); CXX may name one")


def native_flag() -> str:
    """The option that makes a compiler use all that this processor has."""
    return "-march=native" if platform.machine().lower() in ("x86_64", "amd64") else "-mcpu=native"


def fingerprint(command: list[str], source: Path = OPERATION) -> str:
    """Short name of what a library is made from: source, command and processor."""
    digest = hashlib.sha256()
    for path in sorted({*SOURCE.iterdir(), *source.parent.iterdir()}):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    digest.update("\0".join([*command, *processor()]).encode())
    return digest.hexdigest()[:32]


@cache
def processor() -> tuple[str, ...]:
    """What tells this processor from another: its architecture, model and instructions."""
    described = (platform.system(), platform.machine(), platform.processor())
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return described
    names = ("model name", "flags", "CPU implementer", "CPU part", "Features")
    first = {line.split(":")[0].strip(): line for line in reversed(lines)}
    return described + tuple(first[name] for name in names if name in first)


def _compile(command: list[str], source: Path, library: Path) -> None:
    def make(temporary: Path) -> None:
        whole = [*command, f"-I{SOURCE}", "-o", str(temporary), str(source)]
        try:
            done = subprocess.run(whole, capture_output=True, text=True, timeout=PATIENCE)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise NotBuiltError(f"{shlex.join(whole)} failed: {error}") from error
        if done.returncode:
            raise NotBuiltError(f"{shlex.join(whole)} failed: {done.stderr.strip()[-2000:]}")

    try:
        put(library, make)
    except OSError as error:
        raise NotBuiltError(f"{library} cannot be written: {error}") from error
