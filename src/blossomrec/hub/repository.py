"""Repositories of the Hub: which names are theirs, and what is brought from them and put there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from blossomrec.errors import MissingExtraError, RunError

# OWNER/NAME, of the characters that the Hub allows.
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
# What a model consists of: JSON, safetensors, tables and arrays without objects.
FILES = ("config.json", "model.safetensors")
FOLDERS = ("vocabulary", "features", "users")
_PATTERNS = [*FILES, *(f"{folder}/*" for folder in FOLDERS)]


def is_repository(name: str | Path) -> bool:
    """Whether a text may name a repository: ``OWNER/NAME``, and nothing of that name is here."""
    return isinstance(name, str) and bool(_NAME.fullmatch(name)) and not Path(name).exists()


def load_hub() -> Any:
    """The package; MissingExtraError without it."""
    try:
        import huggingface_hub  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise MissingExtraError(error.name or "huggingface_hub", "hub") from error
    return huggingface_hub


def download(repo_id: str, revision: str | None = None) -> Path:
    """The folder of a model, brought from the Hub unless it lies in its cache; no other file is.

    Args:
        revision: a branch, a tag or a commit; None for the newest.

    Raises:
        RunError: there is no folder and no repository of that name, or it cannot be reached.
        MissingExtraError: the package is not installed.
    """
    try:
        hub = load_hub()
    except MissingExtraError as error:
        raise MissingFolderError(repo_id, error) from error
    try:
        return Path(hub.snapshot_download(repo_id, revision=revision, allow_patterns=_PATTERNS))
    # The package raises those of its HTTP client, too, which changes with its version.
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise RunError(
            f"{repo_id} is neither a folder here nor a repository that the Hub gives: {reason}"
        ) from error


class MissingFolderError(MissingExtraError, RunError):
    """A name is that of no folder, and the package that would look for it elsewhere is missing."""

    def __init__(self, name: str, error: MissingExtraError):
        RunError.__init__(
            self, f"{name} is missing: it is not a run folder; as a repository of the Hub, {error}"
        )


def upload(
    folder: Path,
    repo_id: str,
    *,
    private: bool | None,
    revision: str | None,
    token: str | bool | None,
) -> str:
    """Put a folder into a repository, which is made where there is none; gives its address.

    What an earlier model has left in the repository is removed.

    Raises:
        MissingExtraError: the package is not installed.
    """
    api = load_hub().HfApi(token=token, library_name="blossomrec")
    address = api.create_repo(repo_id, private=private, exist_ok=True, repo_type="model")
    if revision is not None:
        api.create_branch(repo_id, branch=revision, exist_ok=True)
    api.upload_folder(
        repo_id=repo_id,
        folder_path=str(folder),
        revision=revision,
        commit_message="Publish a model of blossomrec",
        delete_patterns=_PATTERNS,
    )
    return str(address)
