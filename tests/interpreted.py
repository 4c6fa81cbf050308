"""Makes Triton's interpreter faster, which takes most of the time of interpreted kernels."""

from __future__ import annotations

from typing import Any

import triton.language as tl
from triton.runtime import interpreter


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
