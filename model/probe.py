"""The proof, at load, that a model runs our attention: two tokens through the real module.

It catches models that bypass transformers' attention interface, share or skip layers, or have keys that do not fit a page.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from packhorse.errors import UnsupportedModelError

from .adapter import forward
from .support import HEAD_DIM_MULTIPLE

_TOKENS = 2


@dataclass(frozen=True)
class Shapes:
    """What the model's layers asked of attention, and the width of its logits."""

    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab_size: int


class _Notes:
    """An `Attend` that notes the layers and shapes that it is asked for, and answers zeros."""

    def __init__(self) -> None:
        self.layers: list[int] = []
        self.shapes: set[tuple[tuple[int, ...], ...]] = set()

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        self.layers.append(layer)
        self.shapes.add((tuple(q.shape), tuple(k.shape), tuple(v.shape)))
        return torch.zeros_like(q)


@torch.inference_mode()
def probe(name: str, module: PreTrainedModel) -> Shapes:
    """The shapes of `module`; raises UnsupportedModelError unless each layer asks our attention once, all alike."""
    notes, tokens = _Notes(), torch.arange(_TOKENS)
    try:
        logits = forward(module, tokens, tokens, notes, tokens[-1:])
    except UnsupportedModelError as error:
        raise UnsupportedModelError(f"model {name!r}: {error.message}", param="model") from error
    layers = module.config.num_hidden_layers
    if notes.layers != list(range(layers)):
        raise UnsupportedModelError(
            f"model {name!r}: attention ran for layers {notes.layers}, not once for each of {layers}", param="model"
        )
    if len(notes.shapes) != 1 or not _sound(*next(iter(notes.shapes))):
        raise UnsupportedModelError(
            f"model {name!r}: the shapes of its query, key and value, {sorted(notes.shapes)}, are not the same in all "
            f"layers with one head_dim, a multiple of {HEAD_DIM_MULTIPLE}",
            param="model",
        )
    if logits.shape[0] != 1:
        raise UnsupportedModelError(f"model {name!r} cannot compute the logits of chosen tokens alone", param="model")
    q, k, _ = next(iter(notes.shapes))
    return Shapes(layers, heads=q[1], kv_heads=k[1], head_dim=q[2], vocab_size=logits.shape[1])


def _sound(q: tuple[int, ...], k: tuple[int, ...], v: tuple[int, ...]) -> bool:
    """Whether [tokens, heads, head_dim] of query and [tokens, kv_heads, head_dim] of key and value fit each other and a page."""
    if k != v or len(q) != 3 or len(k) != 3:
        return False
    return q[0] == k[0] == _TOKENS and q[1] % k[1] == 0 and q[2] == k[2] and q[2] % HEAD_DIM_MULTIPLE == 0
