"""Which tokens a header can carry."""

from __future__ import annotations

from blossomrec.errors import ConfigError


def check_token(token: str, name: str) -> None:
    """Refuse a token that clients cannot send, or each in a way of its own.

    Args:
        name: what the error calls it; the token itself is never shown.

    Raises:
        ConfigError: it is empty, begins or ends with a space, or has a character that is not
            printable ASCII.
    """
    if not token:
        raise ConfigError(f"{name} is empty: leave it out for no token")
    for position, character in enumerate(token, 1):
        if not " " <= character <= "~":
            raise ConfigError(
                f"position {position} of {name} is not printable ASCII: not every client can send "
                "it in a header"
            )
    if token != token.strip():
        raise ConfigError(f"{name} begins or ends with a space, which a header cannot carry")
