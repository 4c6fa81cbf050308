"""What each table of the paper is made of: data sets, models, longest histories.

A row is a label and a :class:`Form` of model. Rows that stand for the same form, in any table,
are the same training, and what an option changes to its default is the default itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from benchmarks.accuracy.accuracy_study import DATASETS, Preset, known_or_refused
from blossomrec.config import PRESETS as CONFIGURATIONS
from blossomrec.config import ModelConfig

# Data sets with long histories; fewer epochs are enough where a user has many events.
LONG = {"max_len": 1_024, "dropout": 0.2, "tokens_per_batch": 8_192, "epochs": 40}
PRESETS: dict[str, Preset] = DATASETS | {
    # Ranking all cases would take longer than training on what is before them.
    "completejourney": Preset(**LONG | {"epochs": 24}, last_events=5, validation_users=2_500),
    "ml-1m-timed": Preset(**LONG),
    "ml-latest-samples": Preset(**LONG),
}
LONG_DATASETS = ("completejourney", "ml-1m-timed", "ml-latest-samples")
# Where users come back to items, so that their own can be mixed in.
REPEATING = ("completejourney", "assist2017", "online-retail-2", "unix-commands")
# Those that know when something happened, not only what came first.
TIMED_REPEATING = ("completejourney", "online-retail-2")
# All models see ids alone, and no own items unless a form says so.
IDS_ALONE: dict[str, Any] = dict.fromkeys(
    (
        *("time_gap", "request_time", "content", "event_kinds", "request_kind"),
        *("context", "user_table", "repeats"),
    ),
    "off",
)
# That of Blossom's short-term path is meant for a path beside another.
WINDOW = 32
BLOSSOM, DENSE = "BlossomRec", "SASRec"
# Made known by ``random_selection.register``, which needs torch.
AT_RANDOM = "blossom-at-random"


@dataclass(frozen=True)
class Form:
    """A model to measure: options that differ from the defaults, or a baseline by its name.

    Attributes:
        name: in the lines of results.
        against: the model with dense attention that it is tested against, empty for itself.
        only: data sets where it makes sense, empty for all.
    """

    name: str
    model: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    baseline: str = ""
    against: str = DENSE
    only: tuple[str, ...] = ()

    @property
    def changed(self) -> dict[str, Any]:
        """The options that differ from the defaults, by name."""
        return {**self.model, **self.training}


@dataclass(frozen=True)
class PaperTable:
    """Data sets, rows by label, and longest histories, where not a data set's own.

    Attributes:
        title: of its section, in words.
        comparisons: models, each with another than that with dense attention that it is tested
            against.
    """

    title: str
    datasets: tuple[str, ...]
    rows: Mapping[str, Form]
    max_lens: tuple[int, ...] = ()
    comparisons: tuple[tuple[str, str], ...] = ()

    @property
    def forms(self) -> tuple[Form, ...]:
        """The forms of the rows, each once."""
        return tuple({form.name: form for form in self.rows.values()}.values())

    def lengths(self, dataset: str) -> tuple[int, ...]:
        """Longest histories, in events, on a data set."""
        return self.max_lens or (PRESETS[dataset].max_len,)

    def cells(self, datasets: Iterable[str] = ()) -> list[tuple[str, Form, int]]:
        """Data set, form and longest history of each training, without its seed."""
        return [
            (dataset, form, max_len)
            for dataset in datasets or self.datasets
            for max_len in self.lengths(dataset)
            for form in self.forms
            if not form.only or dataset in form.only
            # What is counted is counted in whole histories.
            if not form.baseline or max_len == self.lengths(dataset)[-1]
        ]


def blossom(**options: Any) -> Form:
    """BlossomRec with some options; those of the defaults have the name of the default."""
    defaults = ModelConfig()
    if options.get("kv_heads") == defaults.num_kv_heads:
        options.pop("kv_heads")
    changed = {name: value for name, value in options.items() if value != getattr(defaults, name)}
    words = [f"{name} {value}" for name, value in changed.items()]
    return Form(BLOSSOM + (f" ({', '.join(words)})" if words else ""), changed)


def _attentions(backbone: str, dense: str, blossom_name: str) -> dict[str, Form]:
    """A backbone with each attention, the dense one first."""
    paper = {
        name: CONFIGURATIONS["paper"]["model"][name]
        for name in ("fusion", "kv_heads", "rotary_share")
    }
    choices: dict[str, dict[str, Any]] = {
        dense: {"attention": "full"},
        blossom_name: {},
        f"{blossom_name} (as published)": paper,
        f"{dense} (linrec)": {"attention": "linrec"},
        f"{dense} (window)": {"attention": "window", "window": WINDOW},
    }
    given = {} if backbone == "sasrec" else {"backbone": backbone}
    return {
        name: Form(name, given | options, against="" if name == dense else dense)
        for name, options in choices.items()
    }


def _by_name(*forms: Form) -> dict[str, Form]:
    return {form.name: form for form in forms}


SASREC = _attentions("sasrec", DENSE, BLOSSOM)
BERT4REC = _attentions("bert4rec", "BERT4Rec", "BERT4Rec-Blossom")
OWN_ITEMS = {"repeats": "on"}
SEEN_TIMES = {"time_gap": "on", "request_time": "on"}
REPEATS = _by_name(
    Form("SASRec (own items)", {"attention": "full", **OWN_ITEMS}, only=REPEATING),
    Form("BlossomRec (own items)", OWN_ITEMS, only=REPEATING),
    Form("BlossomRec (own items, times)", OWN_ITEMS | SEEN_TIMES, only=TIMED_REPEATING),
)
MAMBA = Form("Mamba4Rec", {"backbone": "mamba4rec"})
# LiGR layers and a sampled softmax.
ESASREC = Form(
    "eSASRec",
    {"attention": "full", "norm": "pre", "residual": "gated", "feed_forward": "swiglu"},
    {"loss": "sampled_softmax"},
)
MODELS = _by_name(
    Form("GRU4Rec", {"backbone": "gru4rec"}),
    MAMBA,
    Form("HSTU", {"backbone": "hstu"}),
    ESASREC,
)
PAPER_DATASETS = ("ml-1m", "amazon-beauty", "amazon-video-games", "gowalla")
BASELINES = _by_name(
    *(Form(name, baseline=name) for name in ("popularity", "transitions", "item-knn")),
    # The catalogue of the last one is too large for it.
    Form("ease", baseline="ease", only=PAPER_DATASETS[:-1]),
)
PERSONAL = Form("personal-frequency", baseline="personal-frequency", only=REPEATING)
# Two short logs and a long one.
STUDIED = ("ml-1m", "amazon-video-games", "completejourney")
PARAMETERS: dict[str, tuple[float, ...]] = {
    "block_size": (8, 16, 32),
    "top_n": (1, 2, 4, 8, 16),
    "window": (2, 4, 8, 16, 32),
    "compress_window": (16, 32, 64),
    "share": (0.5, 0.8, 0.95, 1.0),
    "power_base": (1.5, 2.0, 3.0, 4.0),
}

TABLES = {
    "accuracy": PaperTable(
        "Accuracy", PAPER_DATASETS, {**SASREC, **BERT4REC, **MODELS, **BASELINES}
    ),
    "ablation": PaperTable(
        "Ablation",
        STUDIED,
        {
            "dense attention": SASREC[DENSE],
            "default": blossom(),
            "without the long path": blossom(paths="short"),
            "without the short path": blossom(paths="long"),
            "fusion: union": blossom(fusion="union"),
            "fusion: gated": blossom(fusion="gated"),
            "with a bias on near keys": blossom(near_bias="on"),
            "block keys: mlp": blossom(compress="mlp"),
            "block keys: mean": blossom(compress="mean"),
            "selector not distilled": blossom(selector_weight=0.0),
            "blocks selected at random": Form(f"{BLOSSOM} (at random)", {"attention": AT_RANDOM}),
            "8 key/value heads": blossom(kv_heads=8),
            "2 key/value heads": blossom(kv_heads=2),
        },
    ),
    "near-bias": PaperTable(
        "The bias on near keys",
        (*PAPER_DATASETS, *LONG_DATASETS),
        {
            "dense attention": SASREC[DENSE],
            "no bias, the default": blossom(),
            "with a bias": blossom(near_bias="on"),
        },
    ),
    "precision": PaperTable(
        "Precision",
        PAPER_DATASETS[:-1],
        {
            "dense attention": SASREC[DENSE],
            "bfloat16, the default on a GPU": blossom(),
            "float32": Form(f"{BLOSSOM} (float32)", training={"precision": "32-true"}),
        },
    ),
    "parameters": PaperTable(
        "Parameters",
        STUDIED,
        {"dense attention": SASREC[DENSE]}
        | {
            f"{name.replace('_', ' ')} {value}": blossom(**{name: value})
            for name, values in PARAMETERS.items()
            for value in values
        },
    ),
    "lengths": PaperTable(
        "Longest histories",
        (*LONG_DATASETS, *REPEATING[1:]),
        {
            **_by_name(SASREC[DENSE], SASREC[BLOSSOM]),
            **REPEATS,
            **_by_name(SASREC[f"{DENSE} (linrec)"], MAMBA, PERSONAL),
        },
        max_lens=(50, 200, 1_024, 4_096),
        comparisons=(
            (BLOSSOM, f"{DENSE} (linrec)"),
            (BLOSSOM, MAMBA.name),
            ("BlossomRec (own items)", "SASRec (own items)"),
            ("BlossomRec (own items)", PERSONAL.name),
        ),
    ),
}
# That is measured by ``speed`` instead of by trainings.
EFFICIENCY = "efficiency"


def chosen(name: str, datasets: Iterable[str] | None) -> tuple[PaperTable, tuple[str, ...]]:
    """A table of trainings by name, and which of its data sets are wanted.

    Raises:
        ConfigError: the table is unknown, or a data set is not in it.
    """
    known_or_refused(name, (*TABLES, EFFICIENCY))
    wanted = tuple(datasets or TABLES[name].datasets)
    for dataset in wanted:
        known_or_refused(dataset, TABLES[name].datasets)
    return TABLES[name], tuple(dict.fromkeys(wanted))
