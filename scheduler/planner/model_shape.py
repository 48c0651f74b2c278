"""A model's sizes from its Hugging Face config.json, read as JSON: what memory and time depend on, without weights or torch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from packhorse.errors import ConfigError

# Model types whose feed-forward block is two matrices; all others have a gate as well.
UNGATED = {
    "bloom", "codegen", "falcon", "gpt2", "gpt_bigcode", "gpt_neo", "gpt_neox", "gptj", "mpt", "nemotron", "opt", "phi", "starcoder2"
}  # fmt: skip
LEARNED_POSITIONS = {"gpt2", "gpt_bigcode", "gpt_neo", "opt"}
DTYPE_BYTES = 2  # GPUs serve in 16 bits (dtype auto)
Config = dict[str, Any]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class ModelShape:
    """Parameters count matrices alone (biases and norms are below 0.1 %). `block_params` are of all layers together.

    `active_params` of them compute one token; the difference are experts that the token does not go to.
    """

    name: str
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    hidden: int
    block_params: int
    active_params: int
    embedding_params: int
    head_params: int
    max_context_tokens: int
    experts: int = 1
    active_experts: int = 1

    @property
    def params(self) -> int:
        """All of them, a tied output head once."""
        return self.block_params + self.embedding_params + self.head_params

    @property
    def weight_bytes(self) -> int:
        return self.params * DTYPE_BYTES

    @property
    def output_params(self) -> int:
        """Of the matrix that gives logits, tied or not."""
        return self.head_params or self.embedding_params

    @property
    def kv_values(self) -> int:
        """K and V values per token, all layers and KV heads."""
        return 2 * self.layers * self.kv_heads * self.head_dim

    def touched_params(self, tokens: Floats | int) -> Floats:
        """Block parameters that steps over `tokens` tokens read: with experts spread at random, those that any token goes to."""
        idle = 1.0 - self.active_experts / self.experts
        if idle == 0:
            return np.full_like(np.asarray(tokens, dtype=np.float64), self.block_params)
        expert_params = (self.block_params - self.active_params) / idle
        return np.asarray(self.block_params - expert_params * idle ** np.asarray(tokens, dtype=np.float64))


def read_shape(path: Path, name: str | None = None) -> ModelShape:
    """The shape in a config.json, or in a folder's. Raises ConfigError that names the file and the field."""
    file = path / "config.json" if path.is_dir() else path
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror}", param="model") from error
    except ValueError as error:
        raise ConfigError(f"{file} is not JSON: {error}", param="model") from error
    if not isinstance(config, dict):
        raise ConfigError(f"{file} holds {type(config).__name__}, not an object", param="model")
    try:
        return shape_of(config, name or (path.name if path.is_dir() else path.stem))
    except ValueError as error:
        raise ConfigError(f"{file}: {error}", param="model") from error


def shape_of(config: Config, name: str) -> ModelShape:
    """The shape in a config.json's object. Raises ValueError that names the field."""
    if isinstance(config.get("text_config"), dict):
        config = {**config, **config["text_config"]}
    if config.get("kv_lora_rank"):
        raise ValueError("kv_lora_rank: multi-head latent attention is not served, so it is not planned for")
    kind = str(config.get("model_type", ""))
    hidden = _count(config, "hidden_size", "n_embd", "d_model")
    layers = _count(config, "num_hidden_layers", "n_layer", "num_layers")
    heads = _count(config, "num_attention_heads", "n_head", "num_heads")
    head_dim = _count(config, "head_dim", default=hidden // heads)
    kv_heads = _count(config, "num_key_value_heads", default=1 if config.get("multi_query") else heads)
    if not (head_dim and kv_heads):
        raise ValueError(f"head_dim={head_dim} and num_key_value_heads={kv_heads} must be at least 1")
    if heads % kv_heads:
        raise ValueError(f"num_attention_heads={heads} is no multiple of num_key_value_heads={kv_heads}")
    context = _count(config, "max_position_embeddings", "n_positions", "n_ctx", default=1 << 20)
    tables = _count(config, "vocab_size") * hidden
    tied = bool(config.get("tie_word_embeddings", kind in LEARNED_POSITIONS))
    attention = hidden * head_dim * (2 * heads + 2 * kv_heads)
    dense, sparse, active, experts, chosen = _feed_forward(config, kind, hidden, layers)
    return ModelShape(
        name=name,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        hidden=hidden,
        block_params=layers * attention + dense + sparse,
        active_params=layers * attention + dense + active,
        embedding_params=tables + (context * hidden if kind in LEARNED_POSITIONS else 0),
        head_params=0 if tied else tables,
        max_context_tokens=context,
        experts=experts,
        active_experts=chosen,
    )


def _feed_forward(config: Config, kind: str, hidden: int, layers: int) -> tuple[int, int, int, int, int]:
    """(dense, all experts', active experts' parameters) of all layers, and the number of experts and of active ones."""
    matrices = 2 if kind in UNGATED else 3
    width = _count(config, "intermediate_size", "n_inner", "ffn_dim", default=4 * hidden)
    experts = _count(config, "num_local_experts", "num_experts", "n_routed_experts", default=1)
    if experts == 1:
        return layers * matrices * hidden * width, 0, 0, 1, 1
    chosen = _count(config, "num_experts_per_tok")
    if chosen > experts:
        raise ValueError(f"num_experts_per_tok={chosen} is more than the {experts} experts")
    expert = matrices * hidden * _count(config, "moe_intermediate_size", default=width)
    dense_layers = _dense_layers(config)
    if dense_layers > layers:
        raise ValueError(
            f"first_k_dense_replace and mlp_only_layers name {dense_layers} layers, the model has {layers}"
        )
    shared = matrices * hidden * _shared_width(config)
    sparse_layers = layers - dense_layers
    router = hidden * experts
    dense = dense_layers * matrices * hidden * width + sparse_layers * (shared + router)
    return dense, sparse_layers * experts * expert, sparse_layers * chosen * expert, experts, chosen


def _dense_layers(config: Config) -> int:
    """Layers without experts, in a model that has some."""
    listed = config.get("mlp_only_layers") or []
    if not isinstance(listed, list):
        raise ValueError(f"mlp_only_layers={listed!r} is not a list of layers")
    return _count(config, "first_k_dense_replace", default=0) + len(listed)


def _shared_width(config: Config) -> int:
    """Of the experts that every token goes to."""
    shared = _count(config, "n_shared_experts", default=0) * _count(config, "moe_intermediate_size", default=0)
    return shared or _count(config, "shared_expert_intermediate_size", default=0)


def _count(config: Config, *names: str, default: int | None = None) -> int:
    """The first of the fields that is set. Raises ValueError for one that is no count, and without any or a default."""
    for name in names:
        value = config.get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < 0 or (value == 0 and default is None):
            raise ValueError(f"{name}={value!r} is not a positive integer")
        return value
    if default is None:
        raise ValueError(f"states no {names[0]}")
    return default
