"""Which prompts of a trace begin alike: the `hash_ids` of a JSONL file.

They name blocks of 512 tokens: equal ids for equal text up to the block's end, also where the last block of a prompt is not full.
Knows nothing of pages, of workers or of what the ids were made from.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path

from bench.datasets import HASH_BLOCK_TOKENS, DatasetError, rows_of

Blocks = tuple[int, ...]


def read_blocks(path: Path) -> Iterator[tuple[int, list[int]]]:
    """(tokens, ids of the blocks) of every prompt. Raises DatasetError for a line without an `input_length` or without `hash_ids`."""
    for line, row in rows_of(path):
        tokens, ids = row.get("input_length"), row.get("hash_ids")
        if not isinstance(tokens, int) or not isinstance(ids, list) or not all(isinstance(one, int) for one in ids):
            raise DatasetError(f"{path}, line {line}: has no integer input_length with a list of integer hash_ids")
        yield tokens, ids


def numbered(prompts: Sequence[tuple[int, Sequence[int]]]) -> list[Blocks]:
    """The same blocks with ids from 0 on; tokens that no block covers get blocks of their own, since they are like no other prompt's."""
    numbers: dict[int, int] = {}
    blocks = [tuple(numbers.setdefault(one, len(numbers)) for one in ids) for _, ids in prompts]
    fresh = count(len(numbers))
    return [known + _rest(tokens, known, fresh) for (tokens, _), known in zip(prompts, blocks, strict=True)]


def _rest(tokens: int, known: Blocks, fresh: Iterator[int]) -> Blocks:
    lacking = -(-tokens // HASH_BLOCK_TOKENS) - len(known)
    return tuple(next(fresh) for _ in range(lacking))
