"""Options of the architecture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from blossomrec.config.options import LARGEST_HISTORY, Switch, named, option
from blossomrec.errors import ConfigError
from blossomrec.registry import ATTENTIONS, BACKBONES

# Of anything that an event looks at; selected blocks take memory whether a history has them or not.
LARGEST_PATTERN = 65_536


@dataclass(frozen=True)
class ModelConfig:
    """The architecture."""

    backbone: str = named(BACKBONES, "sasrec", "model around the attention")
    attention: str = named(ATTENTIONS, "blossom", "attention of the Transformer backbones")
    max_len: int = option(
        200, "longest history, in events, that the model sees", low=2, high=LARGEST_HISTORY
    )
    hidden_size: int = option(128, "width of embeddings and layers", low=1)
    layers: int = option(2, "number of layers", low=1, high=1_024)
    heads: int = option(8, "query heads", low=1)
    kv_heads: int = option(
        0, "key/value heads; divides heads, 0 for as many; fewer take less time and memory", low=0
    )
    rotary_share: float = option(
        0.5,
        "share of each head's dimensions rotated by the position; the rest compare contents alone",
        low=0,
        high=1,
    )
    time_share: float = option(
        0.0, "share of each head's dimensions that the real time rotates", low=0, high=1
    )
    time_gap: Switch = option(
        "auto", "see the time since the previous event; auto: where the log has points in time"
    )
    request_time: Switch = option(
        "auto", "see the time from the last event to the moment for which is recommended"
    )
    clock: Switch = option("off", "see hour of day and day of week, of events and of the moment")
    content: Switch = option(
        "auto", "see what the table of items says of them; auto: where it says something"
    )
    event_kinds: Switch = option("auto", "see the kinds of events; auto: where the log has kinds")
    request_kind: Switch = option(
        "auto", "see which kind of event is wanted; auto: where the log has kinds"
    )
    context: Switch = option("auto", "see the context of events; auto: where the log has any")
    user_table: Switch = option(
        "auto", "see what the table of users says of them; auto: where it says something"
    )
    id_dropout: float = option(
        0.1,
        "with content: share of the items seen by it alone in a training step",
        low=0,
        high=0.95,
    )
    repeats: Switch = option(
        "auto",
        "mix the user's own items into the catalogue; auto: where many training events repeat one",
    )
    inner_size: int = option(256, "width inside the feed-forward layers", low=1)
    norm: Literal["pre", "post"] = option("post", "layer norm before or after each sub-layer")
    residual: Literal["plain", "gated"] = option(
        "plain", "what a sub-layer gives is added as it is, or times a gate made of its input"
    )
    feed_forward: Literal["gelu", "swiglu", "none"] = option(
        "gelu", "feed-forward of a layer: two matrices with GELU, three with SwiGLU, or none"
    )
    state_size: int = option(
        32, "Mamba4Rec: numbers that each channel of a layer keeps", low=1, high=256
    )
    dropout: float = option(
        0.2, "dropout after embeddings, attention and feed-forward", low=0, high=0.95
    )
    block_size: int = option(16, "Blossom: events in a block", low=1, high=LARGEST_PATTERN)
    top_n: int = option(4, "Blossom: selected blocks for each event", low=1, high=LARGEST_PATTERN)
    window: int = option(
        8,
        "recent events the short-term path of Blossom always sees, or all that attention window "
        "does",
        low=1,
        high=LARGEST_PATTERN,
    )
    sinks: int = option(
        0,
        "Blossom: events at the edge of the history that everyone sees",
        low=0,
        high=LARGEST_PATTERN,
    )
    compress: Literal["mlp", "mean"] = option("mlp", "Blossom: how a block of keys becomes one key")
    compress_window: int = option(
        32, "Blossom: keys that one block key is made of", low=1, high=LARGEST_PATTERN
    )
    share: float = option(
        1.0,
        "Blossom: blocks are taken until they have this share of the importance, top_n at most",
        low=0.01,
        high=1,
    )
    power_base: float = option(
        2.0, "Blossom: base of the power law of the short-term path's distances", low=1.1, high=64
    )
    paths: Literal["both", "long", "short"] = option(
        "both", "Blossom: both gated paths, or one alone to see what it gives"
    )
    fusion: Literal["gated", "union"] = option(
        "union", "Blossom: one softmax over both paths, or two and a gate, as published"
    )
    near_bias: Literal["on", "off"] = option(
        "off", "Blossom: learn how much more or less near keys count in the softmax over both paths"
    )
    gate: Literal["independent", "convex"] = option(
        "independent", "Blossom: weights of the two paths, as published, or ones that sum up to 1"
    )
    selector_weight: float = option(
        1.0, "Blossom: weight of the distillation loss of the selector, 0 for none", low=0
    )
    attention_impl: Literal["auto", "reference", "torch", "cpu", "triton", "cuda"] = option(
        "auto", "implementation of Blossom attention"
    )

    @property
    def num_kv_heads(self) -> int:
        """Key/value heads, G."""
        return self.kv_heads or self.heads

    def check_together(self, where: str = "") -> None:
        """Raise ConfigError, naming option and value, where options do not fit each other."""
        if self.hidden_size % self.heads:
            raise ConfigError(
                f"{where}hidden_size is {self.hidden_size}: "
                f"it must be a multiple of heads, {self.heads}"
            )
        if (self.hidden_size // self.heads) % 2:
            raise ConfigError(
                f"{where}hidden_size / heads is {self.hidden_size // self.heads}: "
                "rotary embedding needs it even"
            )
        if self.rotary_share + self.time_share > 1:
            raise ConfigError(
                f"{where}time_share is {self.time_share}: with rotary_share, "
                f"{self.rotary_share}, it must be at most 1"
            )
        if self.heads % self.num_kv_heads:
            raise ConfigError(
                f"{where}kv_heads is {self.kv_heads}: it must divide heads, {self.heads}"
            )
        if self.fusion == "union" and self.gate != "independent":
            raise ConfigError(
                f"{where}gate is {self.gate}: with fusion union there is none, take fusion gated"
            )
        if self.compress_window % self.block_size:
            raise ConfigError(
                f"{where}compress_window is {self.compress_window}: "
                f"it must be a multiple of block_size, {self.block_size}"
            )
