"""A model's shape and a page format small enough for tests that need no weights."""

from __future__ import annotations

import torch

from hack_kernels.page_format import PageFormat
from model.adapter import ModelInfo

INFO = ModelInfo(
    name="small",
    revision="0",
    layers=2,
    heads=4,
    kv_heads=2,
    head_dim=16,
    vocab_size=256,
    max_context_tokens=512,
    eos_token_ids=(0,),
    dtype=torch.float32,
    device=torch.device("cpu"),
)
FORMAT = PageFormat.parse("k4v2", INFO.head_dim, INFO.dtype)
