"""Pages from the templates of this folder."""

from __future__ import annotations

import functools
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined


def render_page(template: str, /, **content: Any) -> str:
    """A page as a string.

    Args:
        template: file name in ``report/templates``.
        content: what the template names; text in it is escaped.

    Raises:
        jinja2.UndefinedError: the template names something that is not given.

    Example:
        >>> page = render_page("report.html", title="Recommenders compared", ...)
    """
    return environment().get_template(template).render(content)


@functools.cache
def environment() -> Environment:
    """The templates; text is escaped, and a name that is not given is an error."""
    return Environment(
        loader=PackageLoader("blossomrec.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
