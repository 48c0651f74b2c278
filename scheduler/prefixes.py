"""Which prompt pages each decode worker holds, as far as it has said: what placements may count as not to be sent.

A hint, never a promise: reports come with heartbeats, and pages may be given up meanwhile. How many pages a job finds held is said by
the worker's Reserved. Knows nothing of workers, but their ids, or of jobs and messages.
"""

from __future__ import annotations

from transport.page_digest import DIGEST_BYTES, PageDigests


class PrefixHolders:
    """All workers' pages: who holds which. Empty, and False, until a worker reports pages."""

    def __init__(self) -> None:
        self._holders: dict[
            bytes, tuple[str, ...]
        ] = {}  # tuples, since most pages have one holder, and a set takes 200 bytes

    def __len__(self) -> int:
        return len(self._holders)

    def add(self, digest: bytes, worker_id: str) -> None:
        """One who has not been added before, or was discarded."""
        self._holders[digest] = (*self._holders.get(digest, ()), worker_id)

    def discard(self, digest: bytes, worker_id: str) -> None:
        """One who was added."""
        holders = tuple(holder for holder in self._holders[digest] if holder != worker_id)
        if holders:
            self._holders[digest] = holders
        else:
            del self._holders[digest]

    def longest(self, digests: PageDigests) -> tuple[str, ...]:
        """Who holds the last page of a prompt that anybody holds together with those before; nobody where none holds the first."""
        found: tuple[str, ...] = ()
        for page in range(len(digests)):
            holders = self._holders.get(digests[page])
            if holders is None:
                break
            found = holders
        return found


class HeldPrefixes:
    """One worker's pages, which `holders` hears of too. Empty, and False, until the worker reports pages."""

    def __init__(self, worker_id: str, holders: PrefixHolders) -> None:
        self._worker_id, self._holders = worker_id, holders
        self._digests: set[bytes] = set()

    def __len__(self) -> int:
        return len(self._digests)

    def change(self, added: bytes, gone: bytes) -> None:
        """Each is digests, joined. Raises ValueError when they are cut off, and changes nothing."""
        new, old = _split(added), _split(gone)
        for digest in self._digests.intersection(old):
            self._holders.discard(digest, self._worker_id)
        self._digests.difference_update(old)
        for digest in new:
            if digest not in self._digests:
                self._digests.add(digest)
                self._holders.add(digest, self._worker_id)

    def clear(self) -> None:
        """The worker is gone."""
        for digest in self._digests:
            self._holders.discard(digest, self._worker_id)
        self._digests.clear()

    def count(self, digests: PageDigests) -> int:
        """Of a prompt's pages, how many from the first are held."""
        for page in range(len(digests)):
            if digests[page] not in self._digests:
                return page
        return len(digests)


def _split(digests: bytes) -> list[bytes]:
    if len(digests) % DIGEST_BYTES:
        raise ValueError(f"{len(digests)} bytes are no whole number of digests of {DIGEST_BYTES} bytes")
    return [digests[start : start + DIGEST_BYTES] for start in range(0, len(digests), DIGEST_BYTES)]
