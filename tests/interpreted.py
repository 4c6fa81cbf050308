"""Makes Triton's interpreter faster, which takes most of the time of interpreted kernels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import triton.language as tl
from triton.runtime import interpreter


def make_faster() -> None:
    """Once for a process: the interpreter does nothing twice, and nothing that nobody looks at."""
    patch_language_once()
    leave_out_unread_checks()
    remember_types()


def patch_language_once() -> None:
    """Let functions that a kernel calls not replace the language again that the kernel replaced."""
    patch = getattr(interpreter, "_patch_lang", None)
    scope = getattr(interpreter, "_LangPatchScope", None)
    if patch is None or scope is None:
        return

    def patch_where_needed(function: Any) -> Any:
        languages = [
            each for each in function.__globals__.values() if each is tl or each is tl.core
        ]
        is_replaced = languages and not any(tl.core.is_builtin(each.load) for each in languages)
        return scope() if is_replaced else patch(function)

    interpreter._patch_lang = patch_where_needed


def leave_out_unread_checks() -> None:
    """Sums of integers are taken again in 64 bits, for an assertion that only debugging makes."""
    options: Any = getattr(getattr(interpreter, "interpreter_builder", None), "options", None)
    if getattr(options, "sanitize_overflow", False) and not options.debug:
        interpreter.interpreter_builder.options = replace(options, sanitize_overflow=False)


def remember_types() -> None:
    """Types of blocks, and what a tensor has from its type, are worked out once for each.

    Types are equal when their names are.
    """
    find = getattr(interpreter, "_get_np_dtype", None)
    if find is not None:
        found: dict[str, Any] = {}

        def numpy_type(given: Any) -> Any:
            name = given.scalar.name
            if name not in found:
                found[name] = find(given)
            return found[name]

        interpreter._get_np_dtype = numpy_type

    def sizes_of(element_ty: tl.dtype, shape: Any) -> tuple:
        return element_ty.name, *[getattr(size, "value", size) for size in shape]

    make_once(tl.core.block_type, sizes_of, lambda element_ty, shape: {"element_ty": element_ty})
    make_once(
        tl.core.tensor,
        lambda handle, type: type.name,
        lambda handle, type: {"handle": handle, "type": type, "dtype": type.scalar},
    )


def make_once(kind: Any, key_of: Callable[..., Any], own: Callable[..., dict[str, Any]]) -> None:
    """Objects of a kind with the same key share all attributes that are not their ``own``."""
    made, known = kind.__init__, {}

    def initialise(self: Any, *given: Any) -> None:
        key, attributes = key_of(*given), own(*given)
        if key not in known:
            made(self, *given)
            known[key] = {name: each for name, each in vars(self).items() if name not in attributes}
        else:
            vars(self).update(known[key], **attributes)

    kind.__init__ = initialise
