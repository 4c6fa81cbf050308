"""Publishing a fitted recommender."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from blossomrec.errors import ConfigError
from blossomrec.files import TemporaryFolder, write_text
from blossomrec.hub.card import model_card
from blossomrec.hub.repository import load_hub, upload
from blossomrec.run.writing import write_model

if TYPE_CHECKING:
    from blossomrec.evaluation import Evaluation
    from blossomrec.models.sequence import SequenceModel
    from blossomrec.run.description import RunInfo
    from blossomrec.run.tables import Known

# In place of where the log lies here, which is nobody's business elsewhere.
UNPUBLISHED = Path("/unpublished")


def publish(
    repo_id: str,
    model: SequenceModel,
    info: RunInfo,
    known: Known,
    *,
    evaluation: Evaluation | None = None,
    with_users: bool = False,
    **options: Any,
) -> str:
    """Write model and card into a folder, without paths of this machine, and upload it.

    Args:
        options: of :func:`blossomrec.hub.repository.upload`.

    Raises:
        ConfigError: the model has a table of users, and nobody said that it may be published.
    """
    load_hub()
    if known.users is not None and not with_users:
        raise ConfigError(
            f"with_users is False: the model sees a table of {known.users[0].size:,} users, which "
            "would be published with their ids; give with_users=True if that may be"
        )
    folder = TemporaryFolder()
    shown = info._replace(data=UNPUBLISHED, ancestor=None)
    write_model(folder.path, shown, known, model)
    card = model_card(repo_id, model, known.items, info, evaluation)
    write_text(folder.path / "README.md", card)
    return upload(folder.path, repo_id, **options)
