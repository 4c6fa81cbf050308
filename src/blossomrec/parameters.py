"""Parameters of a recommender as scikit-learn has them: asked for, changed, cloned, shown."""

from __future__ import annotations

from typing import Any, Self

from blossomrec.config import RunConfig, with_options


class Parameters:
    """What a recommender was made with, untouched: ``config`` and single options.

    ``sklearn.base.clone`` makes an unfitted recommender of the same parameters; scikit-learn need
    not be installed for anything here.
    """

    _parameters: dict[str, Any]
    config: RunConfig
    model: Any

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The parameters that were given, by name, as they were given.

        Args:
            deep: for scikit-learn; no parameter has parameters of its own.

        Example:
            >>> BlossomRec(epochs=3).get_params()
            {'config': None, 'epochs': 3}
        """
        return dict(self._parameters)

    def set_params(self, **parameters: Any) -> Self:
        """Change parameters for the next ``fit``; what is fitted stays as it is.

        Args:
            parameters: ``config``, or options by name.

        Returns:
            self.

        Raises:
            ConfigError: an option is unknown or out of bounds; nothing has changed then.
        """
        changed = self._parameters | parameters
        config = _resolved(changed)
        self._parameters = changed
        if self.model is None:
            self.config = config
        return self

    @property
    def _given(self) -> RunConfig:
        """The configuration that the parameters come to."""
        return _resolved(self._parameters)

    @property
    def _options(self) -> dict[str, Any]:
        """The parameters besides ``config``."""
        return {name: value for name, value in self._parameters.items() if name != "config"}

    def __repr__(self) -> str:
        shown = [f"{name}={value!r}" for name, value in self._options.items()]
        if self._parameters["config"] is not None:
            shown.insert(0, "config=RunConfig(...)")
        return f"{type(self).__name__}({', '.join(shown)})"


def _resolved(parameters: dict[str, Any]) -> RunConfig:
    options = dict(parameters)
    return with_options(options.pop("config") or RunConfig(), options)
