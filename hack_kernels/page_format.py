"""The page format: how the K and V of `page_tokens` tokens of one KV head and layer lie in bytes, the same for every back end.

A page holds six fields (coded) or two (raw), each at an offset that is a multiple of 16. With per_k = 8 / k_bits codes per byte,
per_v = 8 / v_bits, T = page_tokens and D = head_dim:

    coded:  k_codes [D / per_k / 4, T, 4] uint8   bits i*k_bits.. of byte [c, t, b]: channel 4c + b + i * (D / per_k) of token t
            k_scale [D] uint8, E5M3               asymmetric, per channel over the page's tokens:
            k_min   [D] bf16                          k ~ k_scale * code + k_min
            v_codes [T / 4, D / per_v, 4] uint8   bits i*v_bits.. of byte [q, c, b]: channel c + i * (D / per_v) of token 4q + b
            v_scale [v_groups, T] uint8, E5M3     asymmetric, per token and group of channels:
            v_zero  [v_groups, T] int8                v ~ v_scale * (code + v_zero * 2**(v_bits - 5))
    raw:    k, v [T, D] of `dtype`

So a 32-bit word of codes holds, in each of its fields, four channels of one token (K) or four tokens of one channel (V): what the
int8 dot products of CPUs and GPUs take, after a shift and a mask of the whole word. docs/page-format.md has the picture, and
reference/close_pages.py says how codes, scales and zeros are chosen.

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

LAYOUT_VERSION = 2
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

    Raises ValueError for bit widths other than 2, 4, 8, for one of them None alone, and where head_dim or page_tokens do not
    fill whole 32-bit words of codes.
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
        if self.k_bits is not None and self.head_dim * self.k_bits % 32:
            raise ValueError(
                f"head_dim={self.head_dim} with k_bits={self.k_bits} does not fill whole 32-bit words of codes"
            )
        if self.page_tokens < 4 or self.page_tokens % 4:
            raise ValueError(f"page_tokens={self.page_tokens} is not a positive multiple of 4")
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
                "k_codes": ((dim * self.k_bits // 32, tokens, 4), torch.uint8),
                "k_scale": ((dim,), torch.uint8),
                "k_min": ((dim,), torch.bfloat16),
                "v_codes": ((tokens // 4, dim * self.v_bits // 8, 4), torch.uint8),
                "v_scale": ((self.v_groups, tokens), torch.uint8),
                "v_zero": ((self.v_groups, tokens), torch.int8),
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

    def next_fills_page(self, num_tokens: torch.Tensor) -> torch.Tensor:
        """Of sequences of num_tokens (int64 [n]), which the next token gives another full block: bool [n]."""
        in_blocks = num_tokens + 1 - self.sink_tokens
        return (in_blocks > 0) & (in_blocks % self.page_tokens == 0)

    def view(self, pages: torch.Tensor, name: str) -> torch.Tensor:
        """Field `name` of `pages` (uint8 [..., page_bytes], the last dimension contiguous) as [..., *shape], sharing memory."""
        field = self.fields[name]
        flat = pages[..., field.offset : field.offset + field.num_bytes].view(field.dtype)
        return flat.reshape(*flat.shape[:-1], *field.shape)


def _align(offset: int) -> int:
    return -(-offset // _ALIGNMENT) * _ALIGNMENT
