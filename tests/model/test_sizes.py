"""Sizes counted on weights are those that the planner reads off the configuration."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, MixtralConfig, PreTrainedConfig, Qwen3MoeConfig

from model.loader import load_model
from model.sizes import model_sizes
from model.worker import device_name
from scheduler.planner.model_shape import shape_of
from tests.checkpoints import FAMILIES, make_config
from transport.messages import ModelSizes

MOE: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 2,
}
CONFIGS: dict[str, PreTrainedConfig] = {
    **{family: make_config(family) for family in FAMILIES},
    "tied": make_config("llama", tie_word_embeddings=True),
    "gpt2": GPT2Config(n_embd=64, n_layer=2, n_head=4, n_positions=128, vocab_size=512),
    "mixtral": MixtralConfig(**MOE, intermediate_size=128, num_local_experts=8, num_experts_per_tok=2),
    "qwen3_moe": Qwen3MoeConfig(
        **MOE, head_dim=32, intermediate_size=128, moe_intermediate_size=48, num_experts=8, num_experts_per_tok=3
    ),
}  # fmt: skip


@pytest.mark.parametrize("family", sorted(CONFIGS))
def test_counted_sizes_are_the_configurations(family: str) -> None:
    config = CONFIGS[family]
    with torch.device("meta"):
        module = AutoModelForCausalLM.from_config(config)
    shape = shape_of(config.to_dict(), family)
    counted = model_sizes(module, shape.heads).model_dump()
    assert counted == {name: pytest.approx(getattr(shape, name), rel=2e-3) for name in ModelSizes.model_fields}


def test_a_loaded_model_states_its_sizes_and_device() -> None:
    model = load_model("embedded")
    assert model.sizes.heads == model.info.heads
    assert model.sizes.block_params > 100_000
    assert device_name(model.info.device) == "cpu"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_is_named_as_its_driver_names_it() -> None:
    name = device_name(torch.device("cuda"))
    assert name == torch.cuda.get_device_properties(0).name != "cuda"
