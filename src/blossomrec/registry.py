"""Parts known by name, from this package and from others, imported when first used."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from blossomrec.errors import ConfigError, UnknownNameError, shortened

if TYPE_CHECKING:
    from torch import nn

    from blossomrec.losses import TrainingLoss
    from blossomrec.models.sequence import SequenceModel
    from blossomrec.rules.reranking import Reranker
    from blossomrec.tracking.tracker import Tracker


T = TypeVar("T")
Kind = TypeVar("Kind")


class Registry(Generic[T]):
    """Names of one kind of part, each with what stands behind it, imported when it is asked for.

    A name is built in, registered by :meth:`register`, or an entry point of an installed package.
    No configuration names a module: an entry point does, which whoever installs the package trusts.

    Args:
        kind: what the parts are called in messages, such as ``backbone``.
        group: of the entry points, such as ``blossomrec.backbones``.
        built_in: ``module:attribute`` by name.
        base: ``module:class`` that every part must be a subclass of; None for any callable.

    Example:
        >>> from blossomrec.models.baselines import BASELINES
        >>> BASELINES.names()[0], BASELINES.get("ease").__name__
        ('popularity', 'Ease')
    """

    def __init__(self, kind: str, group: str, built_in: Mapping[str, str], base: str | None = None):
        self.kind, self.group = kind, group
        self._built_in, self._base = dict(built_in), base
        self._registered: dict[str, Any] = {}

    def register(self, name: str) -> Callable[[Kind], Kind]:
        """A decorator that puts a class or function under ``name``, as long as the process lives.

        The same definition may come again, as it does in a notebook.

        Raises:
            ConfigError: the name is taken or no text.
        """
        if not isinstance(name, str) or not name.strip():
            raise ConfigError(f"the name of a {self.kind} is {shortened(name)}: a text is needed")

        def put(part: Kind) -> Kind:
            known = self._registered.get(name, part)
            if name in self._built_in or _place(known) != _place(part):
                raise ConfigError(f"there is a {self.kind} {name!r} already: choose another name")
            self._registered[name] = part
            return part

        return put

    def names(self) -> tuple[str, ...]:
        """All names: built-in ones, registered ones, then those of installed packages."""
        installed = sorted(point.name for point in _installed(self.group, tuple(sys.path)))
        return tuple(dict.fromkeys([*self._built_in, *self._registered, *installed]))

    def get(self, name: str) -> T:
        """What stands behind a name.

        Raises:
            UnknownNameError: there is no such name.
            ConfigError: two packages claim it, it cannot be imported, or it is of another kind.
        """
        if name not in self:
            raise self._unknown(f"no {self.kind} {shortened(name)}")
        claims = self._entry_points(name)
        owners = [_owner(point) for point in claims]
        if name in self._built_in or name in self._registered:
            owners.insert(0, "blossomrec" if name in self._built_in else "this program")
        if len(owners) > 1:
            raise ConfigError(f"{self.kind} {name!r} is claimed by {' and '.join(owners)}")
        return self._checked(name, self._found(name, claims), owners[0])

    def check(self, option: str, value: Any) -> None:
        """Raise ConfigError, UnknownNameError for a text, unless ``value`` is a name."""
        if value in self:
            return
        error = self._unknown(f"{option} is {shortened(value)}")
        # What is no text can be no name, whatever is installed.
        raise error if isinstance(value, str) else ConfigError(str(error))

    def __contains__(self, name: object) -> bool:
        if not isinstance(name, str):
            return False
        known = name in self._built_in or name in self._registered
        return known or bool(self._entry_points(name))

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def _unknown(self, what: str) -> UnknownNameError:
        return UnknownNameError(what, self.kind, self.group, self.names())

    def _entry_points(self, name: str) -> list[EntryPoint]:
        points = _installed(self.group, tuple(sys.path))
        return [point for point in points if point.name == name]

    def _found(self, name: str, claims: list[EntryPoint]) -> Any:
        if name in self._built_in:
            return _attribute(self._built_in[name])
        if name in self._registered:
            return self._registered[name]
        try:
            return claims[0].load()
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ConfigError(
                f"{self.kind} {name!r} of {_owner(claims[0])} cannot be imported: {reason}"
            ) from error

    def _checked(self, name: str, part: Any, owner: str) -> T:
        base = None if self._base is None else _attribute(self._base)
        fits = callable(part) if base is None else isinstance(part, type) and issubclass(part, base)
        if not fits:
            needed = "a callable" if base is None else f"a subclass of {base.__name__}"
            raise ConfigError(
                f"{self.kind} {name!r} of {owner} is {shortened(part)}: {needed} is needed"
            )
        return cast(T, part)


@lru_cache(maxsize=64)
def _installed(group: str, path: tuple[str, ...]) -> tuple[EntryPoint, ...]:
    """Entry points of the packages on a path, read once: to read them takes milliseconds."""
    return tuple(entry_points(group=group))


def _attribute(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(import_module(module), name)


def _place(part: Any) -> tuple[Any, Any]:
    """Where a class or function is defined."""
    return getattr(part, "__module__", None), getattr(part, "__qualname__", id(part))


def _owner(point: EntryPoint) -> str:
    return f"the package {point.dist.name}" if point.dist else "a package"


BACKBONES: Registry[type[SequenceModel]] = Registry(
    "backbone",
    "blossomrec.backbones",
    {
        "sasrec": "blossomrec.models.sasrec:SASRec",
        "bert4rec": "blossomrec.models.bert4rec:BERT4Rec",
        "gru4rec": "blossomrec.models.gru4rec:GRU4Rec",
        "mamba4rec": "blossomrec.models.peers.mamba:Mamba4Rec",
        "hstu": "blossomrec.models.peers.hstu:HSTU",
    },
    base="blossomrec.models.sequence:SequenceModel",
)

# Of a model's configuration and whether an event sees only what came before, a layer.
ATTENTIONS: Registry[Callable[..., nn.Module]] = Registry(
    "attention",
    "blossomrec.attentions",
    {
        "blossom": "blossomrec.models.transformer:build_blossom",
        "full": "blossomrec.models.full:build_full",
        "window": "blossomrec.models.peers.window:build_window",
        "linrec": "blossomrec.models.peers.linrec:build_linrec",
        "mamba": "blossomrec.models.peers.mamba:build_mamba",
        "hstu": "blossomrec.models.peers.hstu:build_hstu",
    },
)

LOSSES: Registry[type[TrainingLoss]] = Registry(
    "loss",
    "blossomrec.losses",
    {
        "cross_entropy": "blossomrec.losses.catalogue:CrossEntropy",
        "sampled_softmax": "blossomrec.losses.sampled:SampledSoftmax",
        "gbce": "blossomrec.losses.sampled:GBCE",
        "bpr": "blossomrec.losses.sampled:BPR",
    },
    base="blossomrec.losses:TrainingLoss",
)

TRACKERS: Registry[type[Tracker]] = Registry(
    "tracker",
    "blossomrec.trackers",
    {
        "tensorboard": "blossomrec.tracking.on_tensorboard:TensorBoard",
        "mlflow": "blossomrec.tracking.on_mlflow:MLflow",
        "wandb": "blossomrec.tracking.on_wandb:WandB",
    },
    base="blossomrec.tracking.tracker:Tracker",
)

# Functions of candidates, or classes whose objects, made without arguments, are such functions.
RERANKERS: Registry[Reranker | type[Reranker]] = Registry("reranker", "blossomrec.rerankers", {})


def lazily(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """The ``__getattr__`` of a package: ``homes`` names the module that defines each name."""

    def find(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(homes[name]), name)

    return find
