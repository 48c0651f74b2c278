"""The page format: how the K and V of `page_tokens` tokens of one KV head and layer lie in bytes, the same for every back end.

A page holds four fields (codes) or two (raw), each at an offset that is a multiple of 16:

    coded:  k_codes [page_tokens, head_dim * k_bits / 8] uint8     asymmetric, per channel over the page's tokens
            k_scale, k_min [head_dim] bf16                         k ~ k_scale * code + k_min
            v_codes [page_tokens, head_dim * v_bits / 8] uint8     asymmetric, per token and group of channels
            v_scale, v_min [page_tokens, v_groups] bf16            v ~ v_scale * code + v_min
    raw:    k, v [page_tokens, head_dim] of `dtype`

Codes are packed `8 / bits` to a byte: bits i*bits.. of byte j of a token's row hold channel j + i * (head_dim * bits / 8), so
that shifting and masking a whole row yields contiguous runs of channels. The format is after KIVI and HACK's 2026 code.

Token layout of a sequence: `sink_tokens` sinks, then page p covers [sink_tokens + p * page_tokens, + page_tokens). Sinks and the
newest tokens that fill no page are the residual, kept in `dtype`: token t < sink_tokens in slot t, any other residual
token in slot sink_tokens + (t - sink_tokens) % page_tokens.

This file knows nothing of pools, page tables or devices.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property

import torch

LAYOUT_VERSION = 1
PAGE_TOKENS = 64
SINK_TOKENS = 4
BITS = (2, 4, 8)
MAX_GROUP_CHANNELS = 64
_ALIGNMENT = 16


@dataclass(frozen=True)
class Field:
    """One field of a page: where it starts, its shape and element type."""

    offset: int
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def num_bytes(self) -> int:
        count = self.dtype.itemsize
        for size in self.shape:
            count *= size
        return count


@dataclass(frozen=True)
class PageFormat:
    """The format of one model's pages. `k_bits` and `v_bits` are both None for raw pages.

    Raises ValueError for bit widths other than 2, 4, 8, for one of them None alone, and for a head_dim whose rows do not
    fill whole bytes.
    """

    head_dim: int
    dtype: torch.dtype
    k_bits: int | None = None
    v_bits: int | None = None
    page_tokens: int = PAGE_TOKENS
    sink_tokens: int = SINK_TOKENS

    def __post_init__(self) -> None:
        if (self.k_bits is None) != (self.v_bits is None):
            raise ValueError(f"k_bits={self.k_bits} and v_bits={self.v_bits}: give both, or neither for raw pages")
        for name, bits in (("k_bits", self.k_bits), ("v_bits", self.v_bits)):
            if bits is not None and bits not in BITS:
                raise ValueError(f"{name}={bits} is not one of {BITS}")
        if self.head_dim < 8 or self.head_dim % 8:
            raise ValueError(f"head_dim={self.head_dim} is not a positive multiple of 8")
        if self.dtype not in (torch.float32, torch.bfloat16, torch.float16):
            raise ValueError(f"dtype={self.dtype} is not float32, bfloat16 or float16")

    @classmethod
    def parse(cls, name: str, head_dim: int, dtype: torch.dtype) -> PageFormat:
        """The format called `name`: "raw", or "k<bits>v<bits>" such as "k4v2". Raises ValueError naming what is allowed."""
        if name == "raw":
            return cls(head_dim, dtype)
        match = re.fullmatch(r"k([248])v([248])", name)
        if not match:
            raise ValueError(
                f"KV format {name!r} is not 'raw' or k<bits>v<bits> with bits of 2, 4 or 8, such as 'k4v2'"
            )
        return cls(head_dim, dtype, int(match[1]), int(match[2]))

    @property
    def name(self) -> str:
        return "raw" if self.raw else f"k{self.k_bits}v{self.v_bits}"

    @property
    def raw(self) -> bool:
        return self.k_bits is None

    @property
    def group_channels(self) -> int:
        """Channels that share one v_scale: the largest divisor of head_dim that is at most 64."""
        return max(n for n in range(1, MAX_GROUP_CHANNELS + 1) if self.head_dim % n == 0)

    @property
    def v_groups(self) -> int:
        return self.head_dim // self.group_channels

    @property
    def residual_slots(self) -> int:
        """Slots of a sequence's residual buffer."""
        return self.sink_tokens + self.page_tokens

    @cached_property
    def fields(self) -> dict[str, Field]:
        """Every field by name, in the order in which they lie."""
        tokens, dim = self.page_tokens, self.head_dim
        if self.k_bits is None or self.v_bits is None:
            shapes: dict[str, tuple[tuple[int, ...], torch.dtype]] = {
                "k": ((tokens, dim), self.dtype),
                "v": ((tokens, dim), self.dtype),
            }
        else:
            shapes = {
                "k_codes": ((tokens, dim * self.k_bits // 8), torch.uint8),
                "k_scale": ((dim,), torch.bfloat16),
                "k_min": ((dim,), torch.bfloat16),
                "v_codes": ((tokens, dim * self.v_bits // 8), torch.uint8),
                "v_scale": ((tokens, self.v_groups), torch.bfloat16),
                "v_min": ((tokens, self.v_groups), torch.bfloat16),
            }
        fields, offset = {}, 0
        for name, (shape, dtype) in shapes.items():
            fields[name] = Field(offset, shape, dtype)
            offset = _align(offset + fields[name].num_bytes)
        return fields

    @cached_property
    def page_bytes(self) -> int:
        """Bytes of one page of one KV head of one layer."""
        last = list(self.fields.values())[-1]
        return _align(last.offset + last.num_bytes)

    def num_pages(self, num_tokens: int) -> int:
        """Closed pages of a sequence of `num_tokens`."""
        return max(0, num_tokens - self.sink_tokens) // self.page_tokens

    def residual_tokens(self, num_tokens: int) -> int:
        """Residual tokens of a sequence of `num_tokens`; they fill the residual's first slots without a gap."""
        return num_tokens - self.num_pages(num_tokens) * self.page_tokens

    def view(self, pages: torch.Tensor, name: str) -> torch.Tensor:
        """Field `name` of `pages` (uint8 [..., page_bytes], the last dimension contiguous) as [..., *shape], sharing memory."""
        field = self.fields[name]
        flat = pages[..., field.offset : field.offset + field.num_bytes].view(field.dtype)
        return flat.reshape(*flat.shape[:-1], *field.shape)


def _align(offset: int) -> int:
    return -(-offset // _ALIGNMENT) * _ALIGNMENT
