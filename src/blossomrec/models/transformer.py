"""The Transformer encoder around any attention over packed histories."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from torch import Tensor, nn

from blossomrec.attention import AttentionOutput, BlossomAttention, BlossomSpec
from blossomrec.attention.memo import of_one_graph
from blossomrec.attention.packing import positions
from blossomrec.attention.rotary import cos_sin, few_cos_sin, rotated_pairs, time_cos_sin
from blossomrec.attention.state import PagedLayer, Step
from blossomrec.config import ModelConfig
from blossomrec.models import fused
from blossomrec.models.event_inputs import Asked, is_few
from blossomrec.models.recurrent import Continued
from blossomrec.models.sequence import Encoded, SequenceModel
from blossomrec.registry import ATTENTIONS

if TYPE_CHECKING:
    from blossomrec.data.batch import Batch
    from blossomrec.models.recurrent import Tensors


def build_attention(config: ModelConfig, *, causal: bool) -> Any:
    """The attention of one layer, as ``config.attention`` names it; it initialises itself."""
    return ATTENTIONS.get(config.attention)(config, causal=causal)


def build_blossom(
    config: ModelConfig, *, causal: bool, layer: type[BlossomAttention] = BlossomAttention
) -> BlossomAttention:
    """Blossom attention, or a subclass of it, as a configuration defines it."""
    return layer(
        hidden_size=config.hidden_size,
        num_heads=config.heads,
        num_kv_heads=config.num_kv_heads,
        spec=blossom_spec(config, causal=causal),
        impl=config.attention_impl,
    )


def blossom_spec(config: ModelConfig, *, causal: bool) -> BlossomSpec:
    """The definition of Blossom attention that a configuration stands for."""
    names = {one.name for one in fields(BlossomSpec)} - {"causal", "near_bias"}
    options = {name: getattr(config, name) for name in names}
    return BlossomSpec(causal=causal, near_bias=config.near_bias == "on", **options)


class SwiGLU(nn.Module):
    """One half of the numbers times SiLU of the other: [T, 2 * n] to [T, n] (Shazeer, 2020)."""

    def forward(self, x: Tensor) -> Tensor:
        value, opening = x.chunk(2, -1)
        return value * nn.functional.silu(opening)


class TransformerLayer(nn.Module):
    """Attention and a feed-forward network, each with dropout, residual and layer norm.

    With ``config.residual`` "gated", what each gives is multiplied by sigmoid(x W + b) of its input
    before that is added, as in LiGR (Borisyuk et al., arXiv 2502.03417).
    """

    def __init__(self, config: ModelConfig, *, causal: bool):
        super().__init__()
        self.pre_norm, size = config.norm == "pre", config.hidden_size
        self.gated, self.feeds = config.residual == "gated", config.feed_forward != "none"
        plain = not self.gated and config.feed_forward == "gelu"
        self.may_fuse = fused.allowed(config) and plain
        self.attention = build_attention(config, causal=causal)
        # Only the layer's own matrices: the attention has start values of its own.
        own = []
        if self.feeds:
            halves = 2 if config.feed_forward == "swiglu" else 1
            self.inner = nn.Linear(size, halves * config.inner_size)
            self.outer = nn.Linear(config.inner_size, size)
            own += [self.inner, self.outer]
        self.attention_norm, self.dropout = nn.LayerNorm(size), nn.Dropout(config.dropout)
        if self.feeds:
            self.feed_forward_norm = nn.LayerNorm(size)
            self.activation = SwiGLU() if config.feed_forward == "swiglu" else nn.GELU()
        if self.gated:
            self.attention_gate = nn.Linear(size, size)
            own.append(self.attention_gate)
            if self.feeds:
                self.feed_forward_gate = nn.Linear(size, size)
                own.append(self.feed_forward_gate)
        for linear in own:
            nn.init.normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)

    def forward(
        self,
        x: Tensor,
        cu_seqlens: Tensor,
        max_length: int,
        *,
        distil_rows: Tensor | None = None,
        rotary: Tensor | None = None,
    ) -> tuple[Tensor, AttentionOutput]:
        """[T, D] to [T, D] before the feed-forward network, with what the attention gave."""
        attended = self.attention(
            self.attention_input(x),
            cu_seqlens,
            max_length=max_length,
            distil_rows=distil_rows,
            rotary=rotary,
        )
        return self.with_attended(x, attended.hidden), attended

    def extend_paged(
        self, x: Tensor, kept: PagedLayer, step: Step, rotary: Tensor | None = None
    ) -> Tensor:
        """New events of many users, as :meth:`forward`; ``kept`` is changed."""
        attended = self.attention.extend_paged(self.attention_input(x), kept, step, rotary)
        return self.with_attended(x, attended.hidden)

    def prefill(
        self,
        x: Tensor,
        cu_seqlens: Tensor,
        kept: PagedLayer,
        step: Step,
        rotary: Tensor | None = None,
    ) -> Tensor:
        """Whole histories, as :meth:`forward`; ``kept`` is changed."""
        given = self.attention_input(x)
        attended = self.attention.prefill(given, cu_seqlens, kept, step, rotary)
        return self.with_attended(x, attended.hidden)

    def extend_recurrent(
        self, x: Tensor, given: Continued, kept: Tensors, rotary: Tensor | None = None
    ) -> tuple[Tensor, Tensors]:
        """New events of many users, as :meth:`forward`, and what is kept after them."""
        attended, after = self.attention.extend_recurrent(
            self.attention_input(x), given, kept, rotary
        )
        return self.with_attended(x, attended), after

    @property
    def captures_steps(self) -> bool:
        """Whether :meth:`extend_paged` can be part of a CUDA graph."""
        return isinstance(self.attention, BlossomAttention) and self.attention.captures_steps

    def attention_input(self, x: Tensor) -> Tensor:
        """What the attention is given, [T, D]."""
        return self.attention_norm(x) if self.pre_norm else x

    def with_attended(self, x: Tensor, attended: Tensor) -> Tensor:
        """Input and output of the attention together, [T, D]."""
        if self._in_few_passes(x):
            from blossomrec.models.fused.norm import add_norm

            return add_norm(x, attended, self.attention_norm, self._dropped)
        added = self.dropout(attended)
        x = x + (self.attention_gate(x).sigmoid() * added if self.gated else added)
        return x if self.pre_norm else self.attention_norm(x)

    def finish(self, x: Tensor, request: Tensor | None = None) -> Tensor:
        """The rest of the layer, [T, D] to [T, D], given what is asked for."""
        if request is not None:
            x = x + request.to(x.dtype)
        if not self.feeds:
            return x
        if self._in_few_passes(x):
            from blossomrec.models.fused.feed_forward import feed_forward_norm

            norm = self.feed_forward_norm
            return feed_forward_norm(x, self.inner, self.outer, norm, self._dropped)
        added = self._feed_forward(self.feed_forward_norm(x) if self.pre_norm else x)
        x = x + (self.feed_forward_gate(x).sigmoid() * added if self.gated else added)
        return x if self.pre_norm else self.feed_forward_norm(x)

    def _in_few_passes(self, x: Tensor) -> bool:
        return self.may_fuse and not self.pre_norm and fused.usable(x)

    @property
    def _dropped(self) -> float:
        """Probability of dropout as it is now."""
        return self.dropout.p if self.training else 0.0

    def _feed_forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.outer(self.activation(self.inner(x))))


class TransformerModel(SequenceModel):
    """Embeddings and a stack of Transformer layers; subclasses say what an event may see.

    Args:
        config: the architecture.
        num_items: size of the catalogue.
        causal: whether an event sees only itself and what came before.
        extra_rows: embeddings besides the catalogue's.

    Attributes:
        fixed: options of the architecture that a backbone always has, whatever is configured.
    """

    takes_features = True
    fixed: ClassVar[Mapping[str, Any]] = {}

    def __init__(self, config: ModelConfig, num_items: int, *, causal: bool, extra_rows: int = 0):
        config = replace(config, **self.fixed)
        super().__init__(config, num_items, extra_rows=extra_rows)
        self.layers = nn.ModuleList(
            TransformerLayer(config, causal=causal) for _ in range(config.layers)
        )

    def encode(
        self, batch: Batch, *, distil_rows: Tensor | None = None, keep_layers: bool = False
    ) -> Encoded:
        losses, kept = [], []

        def attended(layer: TransformerLayer, x: Tensor, rotary: Tensor | None) -> Tensor:
            given = {"distil_rows": distil_rows, "rotary": rotary}
            x, output = layer(x, cu_seqlens, batch.max_length, **given)
            if output.selector_loss is not None:
                losses.append(output.selector_loss)
            if keep_layers:
                kept.append(output)
            return x

        vectors, cu_seqlens = self.item_vectors(), of_one_graph(batch.cu_seqlens)
        rotary = self.rotary(batch, cu_seqlens)
        x = self._through(
            self.embedded(batch, vectors), lambda layer, x: attended(layer, x, rotary)
        )
        loss = torch.stack(losses).mean() if losses else None
        catalogue = None if self.content is None else self.output_weight(vectors)
        asked = self.asked(batch)
        return Encoded(self.ask(x, asked), loss, tuple(kept), catalogue, asked)

    def encode_open(self, batch: Batch) -> Tensor:
        cu_seqlens = of_one_graph(batch.cu_seqlens)
        rotary, limit = self.rotary(batch, cu_seqlens), batch.max_length
        return self._through(
            self.embed(batch), lambda layer, x: layer(x, cu_seqlens, limit, rotary=rotary)[0]
        )

    def _through(self, x: Tensor, attend: Callable[[TransformerLayer, Tensor], Tensor]) -> Tensor:
        """[T, D] through all layers, open at the end if something may be asked for."""
        *others, last = self.stack()
        for layer in others:
            x = layer.finish(attend(layer, x))
        x = attend(last, x)
        return x if self.request_inputs is not None else self._finished(x, None)

    def ask(self, kept: Tensor, asked: Asked | None) -> Tensor:
        if self.request_inputs is None:
            return kept
        assert asked is not None
        return self._finished(kept, self.request_inputs(*asked))

    def _finished(self, x: Tensor, request: Tensor | None) -> Tensor:
        return self.final_norm(self.stack()[-1].finish(x, request))

    def rotary(self, batch: Batch, where: Tensor | Step | Continued) -> Tensor | None:
        """Cosine and sine of all angles, [T, 2, pairs]; None where positions alone rotate.

        Of an attention that does not rotate, the times of the events, int64 [T].

        Args:
            where: ``cu_seqlens`` of whole histories, or where new events go.
        """
        if not getattr(self.stack()[0].attention, "rotates", True):
            return batch.times
        config, size = self.config, self.config.hidden_size // self.config.heads
        pairs = rotated_pairs(size, config.time_share)
        if not pairs:
            return None
        assert batch.times is not None
        whole = isinstance(where, Tensor)
        position = positions(where, len(batch.items)) if whole else where.position
        if is_few(batch.items):
            return few_cos_sin(position, batch.times, size, config.rotary_share, pairs)
        places = cos_sin(position, size, config.rotary_share)
        return torch.cat((places, time_cos_sin(batch.times, pairs)), dim=2)

    def stack(self) -> list[TransformerLayer]:
        """The layers, first to last."""
        return [cast(TransformerLayer, layer) for layer in self.layers]
