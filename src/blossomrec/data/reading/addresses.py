"""Tables in object stores and on the web: what Polars finds at an address."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
# Protocol, who asks, host and path, and what follows: never refused, as paths are shown, too.
_ON_THE_WEB = re.compile(r"(https?://)(?:([^/?#]*)@)?([^?#]*)(.*)", re.IGNORECASE | re.DOTALL)
# What Spark and others write beside their tables begins so.
_HIDDEN = (".", "_")


def is_address(source: Any) -> bool:
    """Whether a source is an address, such as ``s3://bucket/events/*.parquet``, and no path."""
    return isinstance(source, str) and _ADDRESS.match(source) is not None


def located(source: str | Path) -> str | Path:
    """An address as it is, everything else as a path."""
    return source if isinstance(source, str) and is_address(source) else Path(source)


def without_secrets(address: str) -> str:
    """An address as it may be told: without the signature of a link, or a password."""
    found = _ON_THE_WEB.match(address)
    # A question mark is part of a pattern elsewhere.
    return address if found is None else found[1] + found[3]


def shown(source: str | Path) -> str:
    """What errors and summaries call a path or an address."""
    return without_secrets(source) if isinstance(source, str) else str(source)


def is_pattern(address: str) -> bool:
    """Whether an address has wildcards; what follows a question mark on the web is a query."""
    return any(one in without_secrets(address) for one in "*?[")


def told_without(secrets: str, text: str) -> str:
    """A text of Polars about an address, without what is not told of that."""
    found = _ON_THE_WEB.match(secrets)
    if found is None:
        return text
    query = found[4].partition("#")[0].removeprefix("?")
    for secret in (query, found[2], (found[2] or "").partition(":")[2]):
        text = text.replace(secret, "...") if secret else text
    return text


def suffix_at(address: str) -> str:
    """The suffix of the files that an address names, "" where it names a folder."""
    return Path(without_secrets(address).rpartition("/")[2]).suffix.lower()


def found_at(address: str) -> list[str]:
    """Addresses of the Parquet files with rows that one stands for, in order of their names.

    Only their footers are read. Raises what Polars does.
    """
    import polars as pl

    if suffix_at(address) == ".parquet" and not is_pattern(address):
        return [address]
    scan = pl.scan_parquet(
        address,
        hive_partitioning=False,
        hidden_file_prefix=_HIDDEN,
        include_file_paths="address",
        # Types and columns are compared later, where errors name the file.
        missing_columns="insert",
        extra_columns="ignore",
    )
    return scan.select(pl.col("address").unique()).collect(engine="streaming")["address"].to_list()
