"""A causal language model of transformers that runs our attention over a ragged batch.

One function, registered with transformers under `ATTENTION`, stands where the model's attention was: it hands queries, keys and
values to the `attend` object that came in through the model's keyword arguments. A forward has one row with the tokens
of all sequences; which token belongs to which sequence only `attend` knows. This file knows nothing of pages or caches.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel

from packhorse.errors import UnsupportedModelError
from transport.messages import ModelSizes

from .sizes import model_sizes

ATTENTION = "packhorse"
_HARMLESS = {"position_ids", "use_cache", "cache_position", "output_attentions", "output_hidden_states", "return_dict"}


class Attend(Protocol):
    """Attention of one layer, called once per layer, in order, within `Model.forward`."""

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        """q [T, heads, head_dim], k, v [T, kv_heads, head_dim], after RoPE -> [T, heads, head_dim]. Views: may not be contiguous.

        The result is valid until the next call.
        """
        ...


@dataclass(frozen=True)
class ModelInfo:
    """What the rest of the system must know of a model. `revision` is a hash of configuration and weights."""

    name: str
    revision: str
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab_size: int
    max_context_tokens: int
    eos_token_ids: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device


class Model:
    """A loaded model; made by `model.loader.load_model`. One forward at a time."""

    def __init__(self, module: PreTrainedModel, info: ModelInfo) -> None:
        self.info = info
        self._module = module

    @property
    def sizes(self) -> ModelSizes:
        """What its times depend on."""
        return model_sizes(self._module, self.info.heads)

    @torch.inference_mode()
    def forward(self, tokens: Tensor, positions: Tensor, attend: Attend, logits_at: Tensor) -> Tensor:
        """One step of a ragged batch: tokens, positions int64 [T]; logits_at int64 [N] indexes rows -> float32 [N, vocab].

        Raises UnsupportedModelError if the model asks of attention what we do not do.
        """
        return forward(self._module, tokens, positions, attend, logits_at)

    @torch.inference_mode()
    def forward_hidden(
        self, tokens: Tensor, positions: Tensor, attend: Attend, logits_at: Tensor
    ) -> tuple[Tensor, Tensor]:
        """As `forward`, and the states that the output head read for these logits, [N, hidden_size] in the model's dtype."""
        kept: list[Tensor] = []
        watch = self._head.register_forward_pre_hook(lambda _, inputs: kept.append(inputs[0]))
        try:
            logits = forward(self._module, tokens, positions, attend, logits_at)
        finally:
            watch.remove()
        return logits, kept[0][0]

    @property
    def hidden_size(self) -> int:
        """Channels of the states that the output head reads."""
        weight: Tensor = self._head.weight  # type: ignore[assignment]
        return weight.shape[1]

    @property
    def _head(self) -> nn.Module:
        head: nn.Module = self._module.get_output_embeddings()  # type: ignore[no-untyped-call]
        return head


def forward(module: PreTrainedModel, tokens: Tensor, positions: Tensor, attend: Attend, logits_at: Tensor) -> Tensor:
    """As `Model.forward`, on the bare module; float32 [N, vocab]."""
    device = module.device
    output = module(
        input_ids=tokens.to(device)[None],
        position_ids=positions.to(device)[None],
        use_cache=False,
        attend=attend,
        logits_to_keep=logits_at.to(device),
    )
    logits: Tensor = output.logits[0].float()
    return logits


def register_attention() -> None:
    """Makes `attn_implementation=ATTENTION` known to transformers; idempotent.

    No mask function is registered under the name, so transformers makes no masks.
    """
    AttentionInterface.register(ATTENTION, _attention)


def _attention(
    module: nn.Module,
    query: Tensor,  # [1, heads, T, head_dim]
    key: Tensor,  # [1, kv_heads, T, head_dim]
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    attend: Attend | None = None,
    is_causal: bool | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """transformers' attention function: [1, T, heads, head_dim], and no weights."""
    if attend is None or query.shape[0] != 1:
        raise UnsupportedModelError(f"{type(module).__name__} calls attention without our batch")
    _check_plain(module, attention_mask, dropout, is_causal, others)
    scale = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
    out = attend(_layer(module), _rows(query), _rows(key), _rows(value), scale)
    return out[None], None


def _rows(x: Tensor) -> Tensor:
    """[1, heads, T, head_dim] -> [T, heads, head_dim], a view."""
    return x[0].transpose(0, 1)


def _layer(module: nn.Module) -> int:
    layer = getattr(module, "layer_idx", None)
    if not isinstance(layer, int):
        raise UnsupportedModelError(f"{type(module).__name__} does not say which layer it is")
    return layer


def _check_plain(
    module: nn.Module, mask: Tensor | None, dropout: float, is_causal: bool | None, others: dict[str, Any]
) -> None:
    """Raises UnsupportedModelError unless plain causal attention is what the module wants."""
    asked = [name for name, value in others.items() if value is not None and name not in _HARMLESS]
    if mask is not None:
        asked.append("attention_mask")
    if dropout:
        asked.append("dropout")
    if is_causal is False or getattr(module, "is_causal", True) is False:
        asked.append("is_causal=False")
    if asked:
        raise UnsupportedModelError(
            f"{type(module).__name__} asks attention for what is not supported: {', '.join(asked)}"
        )
