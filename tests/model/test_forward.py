"""Every family through our attention function equals transformers' own attention, on ragged batches."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AutoModelForCausalLM

from hack_kernels.page_format import PageFormat
from model.adapter import Model
from model.layout import kv_layout
from model.loader import load_model
from tests.checkpoints import FAMILIES, make_checkpoint

LENGTHS = (1, 7, 40, 2)


class ExactAttend:
    """Causal attention of each sequence of a ragged batch to itself and, in later steps, to what it kept."""

    def __init__(self) -> None:
        self.lengths: list[int] = []
        self._kept: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        parts = zip(*(x.split(self.lengths) for x in (q, k, v)), strict=True)
        return torch.cat([self._one(layer, i, *part, scale) for i, part in enumerate(parts)])

    def _one(self, layer: int, sequence: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        if (layer, sequence) in self._kept:
            before_k, before_v = self._kept[layer, sequence]
            k, v = torch.cat([before_k, k]), torch.cat([before_v, v])
        self._kept[layer, sequence] = (k, v)
        queries, keys = q.shape[0], k.shape[0]
        mask = torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)
        q, k, v = (x.transpose(0, 1) for x in (q, k, v))
        return scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale, enable_gqa=True).transpose(0, 1)


def _prompts() -> list[Tensor]:
    generator = torch.Generator().manual_seed(7)
    return [torch.randint(0, 4096, (length,), generator=generator) for length in LENGTHS]


@pytest.fixture(scope="module", params=FAMILIES)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(request.param, tmp_path_factory.mktemp(request.param))


def _reference(folder: Path, prompt: Tensor) -> Tensor:
    """transformers' logits [tokens, vocab] of one prompt alone."""
    with torch.inference_mode():
        module = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32)
        return module(prompt[None]).logits[0]


def _run(model: Model, attend: ExactAttend, pieces: list[Tensor], starts: list[int], logits_at: Tensor) -> Tensor:
    attend.lengths = [len(piece) for piece in pieces]
    positions = torch.cat([torch.arange(len(piece)) + start for piece, start in zip(pieces, starts, strict=True)])
    return model.forward(torch.cat(pieces), positions, attend, logits_at)


def test_ragged_batch_equals_transformers(checkpoint: Path) -> None:
    model, prompts = load_model(str(checkpoint)), _prompts()
    logits = _run(model, ExactAttend(), prompts, [0] * len(prompts), torch.arange(sum(LENGTHS)))
    assert logits.dtype == torch.float32
    for ours, prompt in zip(logits.split(LENGTHS), prompts, strict=True):
        torch.testing.assert_close(ours, _reference(checkpoint, prompt), atol=1e-4, rtol=0)


def test_prompts_in_chunks_equal_whole_prompts(checkpoint: Path) -> None:
    model, prompts = load_model(str(checkpoint)), [prompt for prompt in _prompts() if len(prompt) > 1]
    attend, starts = ExactAttend(), [len(prompt) // 2 for prompt in prompts]
    heads = [prompt[:start] for prompt, start in zip(prompts, starts, strict=True)]
    tails = [prompt[start:] for prompt, start in zip(prompts, starts, strict=True)]
    nothing = _run(model, attend, heads, [0] * len(prompts), torch.empty(0, dtype=torch.long))
    assert nothing.shape == (0, 4096)
    ends = torch.tensor([len(tail) for tail in tails]).cumsum(0) - 1
    logits = _run(model, attend, tails, starts, ends)
    for ours, prompt in zip(logits, prompts, strict=True):
        torch.testing.assert_close(ours, _reference(checkpoint, prompt)[-1], atol=1e-4, rtol=0)


def test_info_describes_the_checkpoint(checkpoint: Path) -> None:
    info = load_model(str(checkpoint)).info
    config = AutoModelForCausalLM.from_pretrained(checkpoint).config
    assert (info.layers, info.heads, info.kv_heads) == (
        config.num_hidden_layers,
        config.num_attention_heads,
        config.num_key_value_heads,
    )
    assert (info.vocab_size, info.max_context_tokens, info.eos_token_ids) == (4096, 2048, (4,))
    assert (info.dtype, info.device, info.name) == (torch.float32, torch.device("cpu"), checkpoint.name)


def test_layout_names_model_format_and_sizes() -> None:
    info = load_model("embedded", dtype="bfloat16").info
    fmt = PageFormat.parse("k4v2", info.head_dim, info.dtype)
    layout = kv_layout(info, fmt)
    assert (layout.model, layout.revision, layout.dtype, layout.kv_format) == (
        "embedded",
        info.revision,
        "bfloat16",
        "k4v2",
    )
    assert (layout.layers, layout.kv_heads, layout.head_dim, layout.page_bytes) == (6, 2, 64, fmt.page_bytes)
    with pytest.raises(ValueError, match="head_dim 32"):
        kv_layout(info, PageFormat.parse("raw", 32, info.dtype))
