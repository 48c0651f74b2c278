"""`bench prefix-cache --trace`: the prompts of a recorded trace through the decode workers' prefix stores, and the share of pages held.

The trace says which prompts begin alike (trace_blocks.py). The stores are the live ones; everything else is left out: a prompt's pages
are complete at once, and in use no longer than that. So this is what the store and the choice of the worker can give, at most. `turns`
gives every prompt to the next worker, `holder` to the one that holds most of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.datasets import HASH_BLOCK_TOKENS, DatasetError
from bench.machine import describe_machine
from bench.trace_blocks import read_blocks
from decode.prefix_store import PrefixStore
from scheduler.pages import PAGE_TOKENS, SINK_TOKENS

CHOICES = ("turns", "holder")


@dataclass
class StoreOfWorker:
    """One decode worker's pages; slots are numbers, and `free` those that were never taken."""

    free: int
    store: PrefixStore

    def held(self, digests: Sequence[bytes]) -> int:
        used = self.store.use(digests)
        self.store.release(digests[: len(used)])
        return len(used)

    def serve(self, digests: Sequence[bytes]) -> int:
        """A prompt comes, and leaves its pages; how many were held. One that is larger than the pool leaves none."""
        used = self.store.use(digests)
        new = digests[len(used) :]
        if len(new) > self.free + self.store.num_idle:
            self.store.release(digests[: len(used)])
            return len(used)
        self.store.share(new, [self._slot() for _ in new])
        self.store.release(digests)
        return len(used)

    def _slot(self) -> int:
        if self.free:
            self.free -= 1
            return self.free
        return self.store.evict()


def replay(prompts: Sequence[Sequence[bytes]], workers: int, pool_pages: int, choice: str) -> dict[str, Any]:
    """`prompts`: the digests of each one's whole pages, in order of arrival. Returns the record of one run."""
    stores = [StoreOfWorker(pool_pages, PrefixStore()) for _ in range(workers)]
    held = 0
    for number, digests in enumerate(prompts):
        turn = number % workers
        if choice == "holder":
            turn = max(range(workers), key=lambda i: (stores[i].held(digests), i == turn))
        held += stores[turn].serve(digests)
    pages = sum(map(len, prompts))
    return {
        "workers": workers, "pool_pages": pool_pages, "choice": choice, "requests": len(prompts), "pages": pages,
        "pages_held": held, "held_share": held / pages if pages else 0.0,
    }  # fmt: skip


def page_digests(hash_ids: Sequence[int], tokens: int) -> list[bytes]:
    """Of a prompt's whole pages: a page is known by the block in which it ends."""
    num_pages = max(0, min(tokens, len(hash_ids) * HASH_BLOCK_TOKENS) - SINK_TOKENS) // PAGE_TOKENS
    ends = (SINK_TOKENS + PAGE_TOKENS * (page + 1) - 1 for page in range(num_pages))
    return [b"%d/%d" % (hash_ids[end // HASH_BLOCK_TOKENS], end) for end in ends]


def read_prompts(path: Path) -> list[list[bytes]]:
    """Raises DatasetError for a file that cannot be read, and for a line without lengths and blocks."""
    prompts = [page_digests(ids, tokens) for tokens, ids in read_blocks(path)]
    if not prompts:
        raise DatasetError(f"{path}: holds no requests")
    return prompts


def run_prefix_trace(path: Path, workers: Sequence[int], pool_pages: Sequence[int]) -> dict[str, Any]:
    """Every number of workers with every size of their pools, by turns and by holder. Raises DatasetError."""
    prompts = read_prompts(path)
    runs = [
        replay(prompts, count, pages, choice)
        for count in workers
        for pages in pool_pages
        for choice in (CHOICES if count > 1 else CHOICES[:1])
    ]
    return {"machine": describe_machine(), "trace": path.name, "runs": runs}


def print_prefix_trace(result: dict[str, Any], console: Console) -> None:
    table = Table("workers", "pages of each", "chosen by", "pages", "held, not sent", "share")
    for run in result["runs"]:
        counts = [f"{run[name]:,}" for name in ("pages", "pages_held")]
        table.add_row(str(run["workers"]), f"{run['pool_pages']:,}", run["choice"], *counts, f"{run['held_share']:.1%}")
    console.print(table)
    console.print(f"{result['trace']}: {result['runs'][0]['requests']:,} prompts", highlight=False)
