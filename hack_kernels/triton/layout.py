"""What the jitted code must know of a page format, as one compile-time constant."""

from __future__ import annotations

from math import gcd
from typing import NamedTuple

import triton.language as tl

from hack_kernels.page_format import PageFormat

from .launch import next_power_of_2

MAX_SLOTS = 4  # of 2 bits each in the numbers that list them
CHUNK = 32  # K's channels that one tensor-core instruction contracts: 8 for each of those lanes


class Layout(NamedTuple):
    """Sizes, and byte offsets of the fields in a page, each a tl.constexpr as jitted code needs it.

    K's planes (one per field of a byte) are cut into chunks of CHUNK channels, V's into blocks of `v_rows` channels that lie in one plane
    and one group; both are padded where head_dim is no power of two. A slot (see page_offsets.py) is a group of V, in the top plane or
    not: v_slot_groups and v_block_slots list slots' groups and blocks' slots, 2 bits each, v_slot_tops which are in the top plane.
    """

    head_dim: tl.constexpr
    padded_dim: tl.constexpr
    page_tokens: tl.constexpr
    k_bits: tl.constexpr
    k_planes: tl.constexpr
    k_chunks: tl.constexpr
    v_bits: tl.constexpr
    v_planes: tl.constexpr
    v_groups: tl.constexpr
    v_padded_channels: tl.constexpr
    v_slot_groups: tl.constexpr
    v_slot_tops: tl.constexpr
    v_block_slots: tl.constexpr
    v_blocks: tl.constexpr
    v_rows: tl.constexpr
    v_padded: tl.constexpr
    k_scale: tl.constexpr
    k_min: tl.constexpr
    v_codes: tl.constexpr
    v_scale: tl.constexpr
    v_zero: tl.constexpr


def layout_of(fmt: PageFormat) -> Layout:
    """Raises ValueError for a format that these kernels do not cover, naming what is wrong. Not for raw pages."""
    assert fmt.k_bits is not None
    assert fmt.v_bits is not None
    check_format(fmt)
    k_planes, v_planes = 8 // fmt.k_bits, 8 // fmt.v_bits
    v_rows = gcd(fmt.head_dim // v_planes, fmt.group_channels)
    v_blocks = fmt.head_dim // v_rows
    # what a block's offset is made of: its group, and whether it lies in the top plane
    block_slots = [(i * fmt.v_groups // v_blocks, i * v_planes // v_blocks == v_planes - 1) for i in range(v_blocks)]
    slots = list(dict.fromkeys(block_slots))
    assert len(slots) <= MAX_SLOTS
    sizes = {
        "head_dim": fmt.head_dim,
        "padded_dim": max(32, next_power_of_2(fmt.head_dim)),
        "page_tokens": fmt.page_tokens,
        "k_bits": fmt.k_bits,
        "k_planes": k_planes,
        "k_chunks": next_power_of_2(-(-fmt.head_dim // k_planes // CHUNK)),
        "v_bits": fmt.v_bits,
        "v_planes": v_planes,
        "v_groups": fmt.v_groups,
        "v_padded_channels": next_power_of_2(fmt.group_channels),
        "v_slot_groups": sum(group << 2 * i for i, (group, _top) in enumerate(slots)),
        "v_slot_tops": sum(top << i for i, (_group, top) in enumerate(slots)),
        "v_block_slots": sum(slots.index(slot) << 2 * i for i, slot in enumerate(block_slots)),
        "v_blocks": v_blocks,
        "v_rows": v_rows,
        "v_padded": max(16, next_power_of_2(v_rows)),
    }
    offsets = {name: fmt.fields[name].offset for name in ("k_scale", "k_min", "v_codes", "v_scale", "v_zero")}
    return Layout(**{name: tl.constexpr(size) for name, size in (sizes | offsets).items()})


def check_format(fmt: PageFormat) -> None:
    """Raises ValueError where there is no kernel for a format, naming it."""
    if fmt.page_tokens != 64:
        raise ValueError(f"fmt: page_tokens={fmt.page_tokens} has no Triton kernel, only 64 has")
    if fmt.head_dim % 16 or fmt.head_dim > 256:
        raise ValueError(f"fmt: head_dim={fmt.head_dim} has no Triton kernel: it must be a multiple of 16 up to 256")
