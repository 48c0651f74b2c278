"""What Packhorse cannot serve, told from a model's configuration before any weight is read.

Attention here is plain causal attention over a paged, packed cache of one key and one value per token, layer and KV head.
A model that needs anything else is refused by name; what the configuration does not show, the adapter's guard catches.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM, PreTrainedConfig

from packhorse.errors import UnsupportedModelError

HEAD_DIM_MULTIPLE = 8


def check_supported(name: str, config: PreTrainedConfig, folder: Path) -> None:
    """Raises UnsupportedModelError that names the model and every feature which is not supported."""
    features = list(_unsupported(config, folder))
    if features:
        raise UnsupportedModelError(f"model {name!r} ({config.model_type}) needs {', '.join(features)}", param="model")


def window_in_use(config: PreTrainedConfig) -> int | None:
    """The sliding window, in tokens, if it hides tokens of the longest context from some layer."""
    window = getattr(config, "sliding_window", None)
    if window is None or getattr(config, "use_sliding_window", True) is False:
        return None
    layer_types = getattr(config, "layer_types", None)
    if layer_types and all(kind == "full_attention" for kind in layer_types):
        return None
    longest = getattr(config, "max_position_embeddings", None)
    return window if longest is None or window < longest else None


def _unsupported(config: PreTrainedConfig, folder: Path) -> Iterator[str]:
    if getattr(config, "is_encoder_decoder", False):
        yield "an encoder-decoder"
    elif config.get_text_config() is not config:
        yield "more than text (multimodal)"
    elif type(config) not in AutoModelForCausalLM._model_mapping:
        yield "a model class that is no causal language model"
    else:
        yield from _class_features(config)
    if (folder / "adapter_config.json").exists():
        yield "a PEFT adapter (merge it into the weights)"
    if getattr(config, "quantization_config", None):
        yield "quantized weights"
    yield from _attention_features(config)


def _class_features(config: PreTrainedConfig) -> Iterator[str]:
    kind: Any = AutoModelForCausalLM._model_mapping[type(config)]
    if not kind.is_backend_compatible():
        yield "attention that does not go through transformers' attention interface"
    others = [name for name in config.architectures or () if not name.endswith(("ForCausalLM", "LMHeadModel"))]
    if others:
        yield f"a head other than the language model's ({', '.join(others)})"


def _attention_features(config: PreTrainedConfig) -> Iterator[str]:
    if (window := window_in_use(config)) is not None:
        yield f"sliding-window attention (sliding_window={window})"
    kinds = [*(getattr(config, "layer_types", None) or ()), *(getattr(config, "layers_block_type", None) or ())]
    others = sorted({str(kind) for kind in kinds} - {"full_attention", "attention"})
    if others:
        yield f"layers of type {', '.join(others)}"
    if getattr(config, "attn_logit_softcapping", None):
        yield f"soft-capped attention scores (attn_logit_softcapping={config.attn_logit_softcapping})"
    for field in ("kv_lora_rank", "q_lora_rank"):
        if getattr(config, field, None):
            yield f"multi-head latent attention ({field}={getattr(config, field)})"
    if config.model_type == "gpt_oss":
        yield "attention sinks"
    head_dim = config_head_dim(config)
    if head_dim is not None and head_dim % HEAD_DIM_MULTIPLE:
        yield f"a head_dim of {head_dim}, which is not a multiple of {HEAD_DIM_MULTIPLE}"


def config_head_dim(config: PreTrainedConfig) -> int | None:
    """head_dim as the configuration states or implies it; None where it does neither."""
    stated = getattr(config, "head_dim", None)
    if stated:
        return int(stated)
    hidden, heads = getattr(config, "hidden_size", None), getattr(config, "num_attention_heads", None)
    return hidden // heads if hidden and heads else None
