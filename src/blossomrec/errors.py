"""Errors that the user can mend: the command line prints them plainly, exit code 2."""


class BlossomRecError(ValueError):
    """Something given to blossomrec is wrong; the message names the value and its place."""


class DataError(BlossomRecError):
    """A table of events, a prepared log or a list of items is wrong."""


class ConfigError(BlossomRecError):
    """An option is wrong or does not fit another one; the message names the option."""


class RunError(BlossomRecError):
    """A run folder is missing, incomplete, or belongs to another vocabulary."""


class TrainingError(BlossomRecError):
    """Training cannot go on, for example because the loss is not finite."""


class MissingExtraError(BlossomRecError):
    """An optional dependency is not installed; the message holds the line that installs it."""

    def __init__(self, module: str, extra: str):
        super().__init__(
            f"this needs the package {module!r}: install it with  pip install 'blossomrec[{extra}]'"
        )
