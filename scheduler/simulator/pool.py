"""The pages of a simulated decode worker: how many are free, and which prompt pages are kept for prompts that begin alike.

Counts what `decode/pool.py` lists, so that a large pool costs no more than a small one; which pages are found, shared and given up is for
the live worker's own store to say. Knows nothing of residual buffers, host memory or where a job is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from decode.prefix_store import PrefixStore


@dataclass(eq=False, slots=True)
class Holding:
    """Of one job: `own` pages, and the first `shared` of its prompt's pages, which may serve others too.

    `digests` are those of the prompt's pages, as far as the job may share.
    """

    own: int
    digests: Sequence[bytes] = ()
    shared: int = 0


class SimPool:
    def __init__(self, capacity_pages: int) -> None:
        self.prefixes = PrefixStore()
        self._capacity = self._free = capacity_pages
        self._entered = 0  # pages that were ever offered to the store: their numbers stand for slots

    @property
    def used(self) -> int:
        """Pages that jobs hold, each once; all others can be taken."""
        return self._capacity - self._available

    @property
    def _available(self) -> int:
        return self._free + self.prefixes.num_idle

    def take(self, num_pages: int, digests: Sequence[bytes] = ()) -> Holding:
        """The longest prefix of the pages with `digests` that is held counts among `num_pages`.

        More than there is are never asked for: the scheduler has counted.
        """
        shared = len(self.prefixes.use(digests[:num_pages])) if digests else 0
        own = num_pages - shared
        assert own <= self._available, f"{num_pages} pages, of which {shared} are held; free: {self._available}"
        while self._free < own:
            self.prefixes.evict()
            self._free += 1
        self._free -= own
        return Holding(own, digests[:num_pages], shared)

    def share(self, holding: Holding) -> None:
        """All pages of the prompt are here: from now on they may serve other jobs. Those that came twice are free again."""
        new = holding.digests[holding.shared :]
        if not new:
            return
        mine = range(self._entered, self._entered + len(new))
        self._entered += len(new)
        now = self.prefixes.share(new, mine)
        self._free += sum(one != other for one, other in zip(mine, now, strict=True))
        holding.own -= len(new)
        holding.shared += len(new)

    def free(self, holding: Holding) -> None:
        """The job holds nothing any more. What it shared stays until its room is wanted."""
        self.prefixes.release(holding.digests[: holding.shared])
        self._free += holding.own
