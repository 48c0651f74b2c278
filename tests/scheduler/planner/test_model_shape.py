"""Sizes from config.json agree with the published parameter counts, and with weights where they are here."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from packhorse.errors import ConfigError
from scheduler.planner import ModelShape, read_shape
from scheduler.planner.model_shape import shape_of

ROOT = Path(__file__).resolve().parents[3]
QWEN3_MOE = {
    "model_type": "qwen3_moe", "hidden_size": 2048, "intermediate_size": 6144, "moe_intermediate_size": 768, "num_hidden_layers": 48,
    "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128, "vocab_size": 151936, "num_experts": 128,
    "num_experts_per_tok": 8, "max_position_embeddings": 40960, "mlp_only_layers": [],
}  # fmt: skip
MIXTRAL = {
    "model_type": "mixtral", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 8, "vocab_size": 32000, "num_local_experts": 8, "num_experts_per_tok": 2,
}  # fmt: skip
KNOWN = [
    (MIXTRAL, 46_702_792_704, 12.9e9),
    (QWEN3_MOE, 30_532_122_624, 3.3e9),
    (
        {"model_type": "qwen2", "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
         "num_key_value_heads": 4, "vocab_size": 152064}, 7_615_616_512, None,
    ),
    (
        {"model_type": "qwen3", "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 16,
         "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936, "tie_word_embeddings": True}, 596_049_920, None,
    ),
    ({"model_type": "gpt2", "n_embd": 768, "n_layer": 12, "n_head": 12, "n_positions": 1024, "vocab_size": 50257}, 124_439_808, None),
]  # fmt: skip


@pytest.mark.parametrize(
    ("config", "params", "active"), KNOWN, ids=lambda value: value.get("model_type") if isinstance(value, dict) else ""
)
def test_parameters_are_the_published_ones(config: dict[str, Any], params: int, active: float | None) -> None:
    shape = shape_of(config, "m")
    assert shape.params == pytest.approx(params, rel=2e-3)
    if active:
        assert shape.active_params + shape.embedding_params + shape.head_params == pytest.approx(active, rel=0.03)
        assert shape.touched_params(1) == pytest.approx(shape.active_params, rel=1e-6)
        assert shape.touched_params(10_000) == pytest.approx(shape.block_params, rel=1e-6)


def test_llama_is_as_published(llama: ModelShape) -> None:
    assert llama.params == pytest.approx(8_030_261_248, rel=1e-4)
    assert (llama.kv_values, llama.name, llama.max_context_tokens) == (2 * 32 * 8 * 128, "llama-3.1-8b", 131072)
    assert np.array_equal(llama.touched_params(np.array([1.0, 64])), [llama.block_params] * 2)
    assert read_shape(ROOT / "examples/models/llama-3.1-70b.json").params == pytest.approx(70_553_706_496, rel=1e-3)


def test_the_embedded_models_weights_agree() -> None:
    folder = ROOT / "model" / "embedded"
    with (folder / "model.safetensors").open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    stored = sum(int(np.prod(entry["shape"])) for name, entry in header.items() if name != "__metadata__")
    assert read_shape(folder).params == pytest.approx(stored, rel=2e-3)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"hidden_size": None}, "states no hidden_size"),
        ({"num_hidden_layers": "many"}, "num_hidden_layers='many' is not a positive integer"),
        ({"num_key_value_heads": 5}, "num_attention_heads=32 is no multiple of num_key_value_heads=5"),
        ({"kv_lora_rank": 512}, "latent attention is not served"),
        ({"num_experts_per_tok": 9}, "num_experts_per_tok=9 is more than the 8 experts"),
        ({"vocab_size": 0}, "vocab_size=0"),
        ({"num_key_value_heads": 0}, "num_key_value_heads=0 must be at least 1"),
        ({"head_dim": 0}, "head_dim=0 and"),
        ({"mlp_only_layers": 5}, "mlp_only_layers=5 is not a list"),
        ({"first_k_dense_replace": 33}, "name 33 layers, the model has 32"),
    ],
)
def test_what_is_wrong_is_named_with_the_file(write: Callable[..., Path], change: dict[str, Any], named: str) -> None:
    path = write(json.dumps(MIXTRAL | change), "config.json")
    with pytest.raises(ConfigError) as error:
        read_shape(path.parent)
    assert str(path) in error.value.message
    assert named in error.value.message


@pytest.mark.parametrize(("text", "named"), [("{", "is not JSON"), ("[]", "holds list")])
def test_no_object_is_named(write: Callable[..., Path], text: str, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        read_shape(write(text, "config.json"))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        read_shape(tmp_path)
