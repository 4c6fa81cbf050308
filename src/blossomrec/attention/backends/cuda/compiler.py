"""Compiles CUDA C++ when it is first needed, with the compiler that comes with PyTorch (NVRTC)."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from blossomrec.attention.backends.code_cache import NotBuiltError, cache_folder, check_owner, put

SOURCES = Path(__file__).parent / "kernels"
UNITS = ("warp.cuh", "pattern.cuh", "unit.cuh")
# Each program is these files, in this order.
PROGRAMS = {
    "pack": ("warp.cuh", "pack.cu"),
    "split_keys": ("warp.cuh", "split.cuh", "split_keys.cu"),
    "selection": ("warp.cuh", "split.cuh", "choosing.cuh", "selection.cu"),
    "wide_selection": ("warp.cuh", "split.cuh", "choosing.cuh", "wide_selection.cu"),
    "hopper_selection": (
        "warp.cuh",
        "split.cuh",
        "choosing.cuh",
        "shared.cuh",
        "warpgroup.cuh",
        "hopper_selection.cu",
    ),
    "forward": (*UNITS, "forward.cu"),
    "swept_forward": (*UNITS, "sweep.cuh", "swept_forward.cu"),
    "backward_queries": (*UNITS, "queries.cuh", "backward_queries.cu"),
    "counts": (*UNITS, "listing.cuh", "counts.cu"),
    "lists": (*UNITS, "listing.cuh", "lists.cu"),
    "backward_keys": (*UNITS, "keys.cuh", "backward_keys.cu"),
    "near_queries": (*UNITS, "queries.cuh", "shared.cuh", "near_queries.cu"),
    "ring_keys": (*UNITS, "keys.cuh", "shared.cuh", "ring.cuh", "ring_keys.cu"),
    "choices": (*UNITS, "choices.cu"),
}
WARP = 32
# Attributes of a function, by their numbers in CUDA's header: the bytes of shared memory that one
# block of threads takes, how many more it may be given at launch, and the per cent of a
# multiprocessor's memory that is shared memory.
SHARED_BYTES, MORE_SHARED_BYTES, PREFERRED_CARVEOUT = 1, 8, 9


class CompilationError(NotBuiltError):
    """The kernels cannot be compiled or loaded here; the message says why."""


def source(program: str) -> str:
    """The text of one of PROGRAMS."""
    return "\n".join((SOURCES / part).read_text() for part in PROGRAMS[program])


def kernel(
    program: str, name: str, constants: Mapping[str, int | str], carveout: int = 100
) -> Callable[..., None]:
    """A kernel of independent warps, compiled when it is first launched on a device.

    Args:
        program: one of PROGRAMS.
        name: of a function in it.
        constants: values of the names that the source leaves open. ``TOGETHER`` among them, 1
            without it, is the number of warps in a block of threads, which share a first-level
            cache; ``SHARED``, 0 without it, the bytes of shared memory that such a block is given
            at launch.
        carveout: share of a multiprocessor's memory, in per cent, that a kernel with shared memory
            has as such.

    Returns:
        A function of the number of warps and of the kernel's arguments: tensors, integers (32 bits)
        and floats (float32). It launches on the current stream of the first tensor's device.
    """
    defines, together = tuple(sorted(constants.items())), int(constants.get("TOGETHER", 1))
    given = int(constants.get("SHARED", 0))
    functions: dict[int, ctypes.c_void_p] = {}

    def launch(warps: int, *arguments: Any) -> None:
        if not warps:
            return
        device = arguments[0].device.index
        if not arguments[0].is_cuda:
            raise CompilationError(f"{name} needs an NVIDIA GPU, not {arguments[0].device}")
        if device not in functions:
            module = _module(program, defines, device)
            with torch.cuda.device(device):
                functions[device] = _function(module, name, carveout, given)
        values = [as_argument(each) for each in arguments]
        pointers = (ctypes.c_void_p * len(values))(*map(ctypes.addressof, values))
        size = (-(-warps // together), together * WARP, given)
        if device == torch.cuda.current_device():
            _launch(functions[device], size, pointers, device)
        else:
            with torch.cuda.device(device):
                _launch(functions[device], size, pointers, device)

    return launch


def as_argument(value: Any) -> Any:
    """A tensor's address, an int or a float as C knows it."""
    if isinstance(value, Tensor):
        return ctypes.c_void_p(value.data_ptr())
    return ctypes.c_float(value) if isinstance(value, float) else ctypes.c_int(value)


def _launch(
    function: ctypes.c_void_p, size: tuple[int, int, int], pointers: Any, device: int
) -> None:
    stream = ctypes.c_void_p(torch.cuda.current_stream(device).cuda_stream)
    launched = _driver().cuLaunchKernel(
        function, size[0], 1, 1, size[1], 1, 1, size[2], stream, pointers, None
    )
    _check(launched, "launch of a kernel")


def _function(module: ctypes.c_void_p, name: str, carveout: int, given: int) -> ctypes.c_void_p:
    function = ctypes.c_void_p()
    found = _driver().cuModuleGetFunction(ctypes.byref(function), module, name.encode())
    _check(found, f"kernel {name}")
    shared = ctypes.c_int()
    _check(_driver().cuFuncGetAttribute(ctypes.byref(shared), SHARED_BYTES, function), name)
    if given:
        _check(_driver().cuFuncSetAttribute(function, MORE_SHARED_BYTES, given), name)
    if shared.value or given:
        # Shared memory is to hold as many blocks of threads as registers do; it is taken from the
        # cache.
        _check(_driver().cuFuncSetAttribute(function, PREFERRED_CARVEOUT, carveout), name)
    return function


@cache
def _module(program: str, constants: tuple, device: int) -> ctypes.c_void_p:
    capability = torch.cuda.get_device_capability(device)
    code = compiled(program, dict(constants), architecture_of(capability))
    module = ctypes.c_void_p()
    with torch.cuda.device(device):
        _check(_driver().cuModuleLoadData(ctypes.byref(module), code), f"loading {program}")
    return module


def architecture_of(capability: tuple[int, int]) -> str:
    """What code is compiled for; Hopper has instructions that no later GPU has."""
    return "sm_90a" if capability == (9, 0) else "sm_{}{}".format(*capability)


def compiled(program: str, constants: Mapping[str, int | str], architecture: str) -> bytes:
    """Machine code of one of PROGRAMS, kept in the user's cache.

    Raises:
        CompilationError: there is no NVRTC, or it refuses the source.
    """
    options = [
        f"--gpu-architecture={architecture}",
        "--std=c++17",
        "--device-as-default-execution-space",
        *(f"-D{key}={value}" for key, value in constants.items()),
    ]
    text = source(program)
    made_from = "\0".join([str(torch.version.cuda), *options, text])
    try:
        kept = cache_folder("cuda") / f"{hashlib.sha256(made_from.encode()).hexdigest()[:32]}.cubin"
        if kept.exists():
            check_owner(kept)
            return kept.read_bytes()
    except NotBuiltError:
        # The folder is not trusted: nothing is read from it or kept in it.
        return _compile(program, text, options)
    code = _compile(program, text, options)

    def write(path: Path) -> None:
        path.write_bytes(code)

    # A full disk means that the program is compiled again next time.
    with contextlib.suppress(OSError):
        put(kept, write)
    return code


def _compile(program: str, text: str, options: list[str]) -> bytes:
    nvrtc, handle = _nvrtc(), ctypes.c_void_p()
    given = (ctypes.c_char_p * len(options))(*(each.encode() for each in options))
    name = f"{program}.cu".encode()
    nvrtc.nvrtcCreateProgram(ctypes.byref(handle), text.encode(), name, 0, None, None)
    try:
        if nvrtc.nvrtcCompileProgram(handle, len(options), given):
            log = _bytes(nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog, handle)
            raise CompilationError(f"{program}.cu, {options[0]}: {log.decode()}")
        return _bytes(nvrtc.nvrtcGetCUBINSize, nvrtc.nvrtcGetCUBIN, handle)
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(handle))


def _bytes(size_of: Any, bytes_of: Any, handle: ctypes.c_void_p) -> bytes:
    size = ctypes.c_size_t()
    size_of(handle, ctypes.byref(size))
    text = ctypes.create_string_buffer(size.value)
    bytes_of(handle, text)
    return text.raw


def _check(code: int, what: str) -> None:
    if code:
        text = ctypes.c_char_p()
        _driver().cuGetErrorString(code, ctypes.byref(text))
        raise CompilationError(f"{what}: {(text.value or b'error').decode()} ({code})")


def libraries() -> None:
    """Load what compiling and launching need; CompilationError where something is missing."""
    _driver()
    _nvrtc()


@cache
def _driver() -> ctypes.CDLL:
    try:
        return ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        raise CompilationError(f"no CUDA driver: {error}") from error


@cache
def _nvrtc() -> ctypes.CDLL:
    version = (torch.version.cuda or "").split(".")[0]
    packages = Path(torch.__file__).parents[1] / "nvidia"
    found = [
        f"libnvrtc.so.{version}",
        *map(str, sorted(packages.glob(f"*/lib/libnvrtc.so.{version}"))),
        "libnvrtc.so",
    ]
    for name in found:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    raise CompilationError(f"NVRTC, CUDA's compiler, is not found: tried {', '.join(found)}")
