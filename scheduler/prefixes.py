"""Which prompt pages a decode worker holds, as far as it has said: what placements may count as not to be sent.

A hint, never a promise: reports come with heartbeats, and pages may be given up meanwhile. How many pages a job finds held is said by
the worker's Reserved. Knows nothing of workers, jobs or messages.
"""

from __future__ import annotations

from transport.page_digest import DIGEST_BYTES, PageDigests


class HeldPrefixes:
    """Empty, and False, until the worker reports pages."""

    def __init__(self) -> None:
        self._digests: set[bytes] = set()

    def __len__(self) -> int:
        return len(self._digests)

    def change(self, added: bytes, gone: bytes) -> None:
        """Each is digests, joined. Raises ValueError when they are cut off, and changes nothing."""
        new, old = _split(added), _split(gone)
        self._digests.difference_update(old)
        self._digests.update(new)

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
