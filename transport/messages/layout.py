"""The KV layout: what both ends of a page stream must agree on. Knows nothing of tensors."""

from __future__ import annotations

from pydantic import Field

from .base import Model


class KVLayout(Model):
    """What both ends of a page stream must agree on, field by field (see transport/handshake.py)."""

    model: str
    revision: str = Field(description="hash of configuration and weights")
    layers: int = Field(ge=1)
    kv_heads: int = Field(ge=1)
    head_dim: int = Field(ge=1)
    dtype: str = Field(description="of raw pages and of the residual, as torch names it: bfloat16")
    kv_format: str = Field(description="raw, or k<bits>v<bits>")
    page_tokens: int
    sink_tokens: int
    page_bytes: int = Field(description="of one page of one KV head of one layer")
    layout_version: int
