"""Small random checkpoints of every family that Packhorse serves, made by transformers: enough to run whole servers on.

Weights are wide enough that greedy output varies; vocabulary, tokenizer and chat template are the embedded model's.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
)
from transformers.utils import logging

from model.source import find_model

FAMILIES = ("llama", "qwen2", "qwen3", "mistral", "phi3")
CONTEXT_TOKENS = 2048
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
_COMMON: dict[str, Any] = {
    "vocab_size": 4096,
    "max_position_embeddings": CONTEXT_TOKENS,
    "num_hidden_layers": 2,
    "bos_token_id": 0,
    "eos_token_id": 4,
    "pad_token_id": 0,
    "initializer_range": 0.2,
    "tie_word_embeddings": False,
}


def make_config(family: str, **changes: Any) -> PreTrainedConfig:
    """The configuration of a small model of `family`; `changes` override its fields. Shapes differ between families."""
    sizes: dict[str, tuple[type[PreTrainedConfig], dict[str, Any]]] = {
        "llama": (LlamaConfig, _sizes(hidden=64, heads=4, kv_heads=2) | {"num_hidden_layers": 3}),
        "qwen2": (Qwen2Config, _sizes(hidden=96, heads=6, kv_heads=2)),
        "qwen3": (Qwen3Config, _sizes(hidden=64, heads=4, kv_heads=2) | {"head_dim": 32}),
        "mistral": (MistralConfig, _sizes(hidden=64, heads=4, kv_heads=1) | {"sliding_window": None}),
        "phi3": (Phi3Config, _sizes(hidden=128, heads=4, kv_heads=2)),
    }
    kind, fields = sizes[family]
    return kind(**(_COMMON | fields | changes))


def make_checkpoint(family: str, folder: Path, seed: int = 0, **changes: Any) -> Path:
    """Writes a float32 checkpoint with tokenizer into `folder` (made if missing); the same seed gives the same weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(make_config(family, **changes), dtype=torch.float32)
    logging.disable_progress_bar()
    model.save_pretrained(folder)
    for name in _TOKENIZER_FILES:
        shutil.copyfile(find_model("embedded") / name, folder / name)
    return folder


def _sizes(hidden: int, heads: int, kv_heads: int) -> dict[str, Any]:
    return {
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
    }
