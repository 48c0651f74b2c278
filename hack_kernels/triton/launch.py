"""What the launchers of all kernels share: how finely work is split, how float queries are cut into terms, which way kernels run."""

from __future__ import annotations

from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

INTERPRETED = bool(
    triton.knobs.runtime.interpret
)  # fixed when triton was imported: jitted functions are of one kind or the other
MAX_GROUP = 16
PROGRAMS_PER_PROCESSOR = 16  # of one warp each: enough to keep loads in flight, few enough for their registers
MIN_PAGES_PER_SPLIT = 2
TRITON_DTYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
_SIGNIFICANT_BITS = {torch.float32: 24, torch.bfloat16: 8, torch.float16: 11}


def check_group(group: int) -> None:
    """Raises ValueError where more query heads share a KV head than kernels take."""
    if group > MAX_GROUP:
        raise ValueError(f"q: {group} query heads per KV head have no Triton kernel, at most {MAX_GROUP} have")


def num_splits(device: torch.device, programs: int, max_pages: int) -> int:
    """Into how many parts a sequence's pages are split, `programs` being launched for each part. 0 without pages."""
    wanted = -(-_processors(device) * PROGRAMS_PER_PROCESSOR // programs)
    return min(max(wanted, 1), -(-max_pages // MIN_PAGES_PER_SPLIT), max_pages)


@lru_cache
def _processors(device: torch.device) -> int:
    if device.type != "cuda":
        return 1
    return torch.cuda.get_device_properties(device).multi_processor_count


def query_terms(dtype: torch.dtype, operand: torch.dtype) -> int:
    """How many numbers of `operand` add up to one of `dtype`."""
    if operand == torch.float32:
        return 1
    return -(-_SIGNIFICANT_BITS[dtype] // _SIGNIFICANT_BITS[operand])


def last_contiguous(x: Tensor) -> Tensor:
    """x, or a copy where its last dimension is strided."""
    return x if x.stride(-1) == 1 or x.shape[-1] == 0 else x.contiguous()


def next_power_of_2(n: int) -> int:
    return 1 << (n - 1).bit_length()
