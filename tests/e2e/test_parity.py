"""Greedy decoding over raw pages equals transformers' generate, token for token, across the prefill/decode seam."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.checkpoints import FAMILIES, make_checkpoint
from tests.e2e.conftest import MakeSystem

CHUNK_TOKENS = 48
NEW_TOKENS = 64
LENGTHS = (1, 3, 4, 5, 47, 48, 70, 3 * CHUNK_TOKENS)  # to three chunks; around sinks and the first page


def _prompts(vocab_size: int) -> list[list[int]]:
    rng = random.Random(7)
    return [[rng.randrange(5, vocab_size) for _ in range(length)] for length in LENGTHS]


def _generate(checkpoint: Path, prompts: list[list[int]]) -> list[list[int]]:
    """What transformers makes of each prompt alone, in float32."""
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    expected = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=NEW_TOKENS,
            min_new_tokens=NEW_TOKENS,
        )
        expected.append(out[0, len(prompt) :].tolist())
    return expected


@pytest.mark.parametrize("family", FAMILIES)
async def test_raw_pages_equal_generate(family: str, tmp_path: Path, system: MakeSystem) -> None:
    checkpoint = make_checkpoint(family, tmp_path / family)
    prompts = _prompts(256)
    expected = _generate(checkpoint, prompts)
    assert (
        len({tuple(tokens) for tokens in expected}) > len(prompts) // 2
    )  # a model that repeats one token proves nothing
    async with system(
        str(checkpoint), kv_format="raw", prefill={"chunk_tokens": CHUNK_TOKENS}, decode={"dtype": "float32"}
    ) as s:
        alone = [await s.client.run(prompt, max_tokens=NEW_TOKENS) for prompt in prompts]
        together = await asyncio.gather(*(s.client.run(prompt, max_tokens=NEW_TOKENS) for prompt in prompts))
    assert [[output.token_id for output in outputs] for outputs in alone] == expected
    assert [[output.token_id for output in outputs] for outputs in together] == expected
