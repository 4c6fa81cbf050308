"""The CUDA kernels on a CPU: the same sources, compiled for lanes that are coroutines (lanes.h)."""

from __future__ import annotations

import ctypes
import hashlib
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path

from blossomrec.attention.backends.cuda import compiler

COMPILER = shutil.which("g++") or shutil.which("c++")
LANES = Path(__file__).with_name("lanes.h")
FLAGS = ("-std=c++17", "-O1", "-w", "-fPIC")
CALLS = """
#include <utility>
template <typename... A, size_t... I>
static void invoke(void (*kernel)(A...), void **given, std::index_sequence<I...>) {
    kernel(*reinterpret_cast<A *>(given[I])...);
}
template <typename... A>
static void invoke(void (*kernel)(A...), void **given) {
    invoke(kernel, given, std::index_sequence_for<A...>());
}
"""
CALL = """
extern "C" int run_{name}(void **given, int warps) {{
    const int blocks = (warps + TOGETHER - 1) / TOGETHER;
    return launch([](void **each) {{ invoke({name}, each); }}, given, blocks);
}}
"""


class Emulator:
    """Its :meth:`kernel` takes the place of the compiler's; programs are kept in ``folder``."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.library = cache(self._library)
        self.headers = cache(self._headers)

    def kernel(self, program, name, constants, carveout=100):
        def launch(warps, *arguments):
            if not warps:
                return
            # Only here, as the real compiler does: few tests launch all kernels that there are.
            run = getattr(self.library(program, tuple(sorted(constants.items()))), f"run_{name}")
            values = [compiler.as_argument(each) for each in arguments]
            misaligned = run((ctypes.c_void_p * len(values))(*map(ctypes.addressof, values)), warps)
            assert not misaligned, f"{name}: {misaligned} accesses are not aligned"

        return launch

    def _library(self, program, constants):
        source = compiler.source(program)
        kernels = re.findall(r'extern "C" __global__ .*?\b(\w+)\(\n', source)
        calls = "".join(CALL.format(name=name) for name in kernels)
        text = f'#include "{LANES}"\n{source}\n{CALLS}{calls}'
        lanes = LANES.read_text()
        # Programs are the same where only constants differ that they do not name. Comments name
        # others, and bounds of registers are nothing to a CPU.
        code = re.sub(r"//.*|__launch_bounds__\(.*?\) \w+\(", "", text + lanes)
        named = set(re.findall(r"\b[A-Z]\w*", code))
        flags = [f"-D{key}={value}" for key, value in constants if key in named]
        digest = hashlib.sha256("".join((text, lanes, *flags)).encode()).hexdigest()
        library = self.folder / f"{program}-{digest[:16]}.so"
        if not library.exists():
            library.with_suffix(".cpp").write_text(text)
            command = [COMPILER, *FLAGS, "-shared", *flags, "-include", self.headers()]
            subprocess.run([*command, "-o", library, library.with_suffix(".cpp")], check=True)
        return ctypes.CDLL(str(library))

    def _headers(self):
        """The standard library's headers, which take most of the time, compiled beforehand."""
        headers = self.folder / "headers.h"
        headers.write_text("\n".join(re.findall(r"#include <.*>", LANES.read_text() + CALLS)))
        command = [COMPILER, *FLAGS, "-x", "c++-header", "-o", f"{headers}.gch", headers]
        subprocess.run(command, check=True)
        return headers
