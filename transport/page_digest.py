"""What a prompt's page holds, as 16 bytes: equal digests mean equal tokens from the start of the prompt to the page's end.

    digest(p) = H(digest(p - 1), the token ids of page p)        digest(-1) = H(KV layout, the job's cache salt)

The first page's tokens include the sinks before it, which its attention sees. H is BLAKE2b with 128 bits, a cryptographic hash, because a
collision would have one job attend to another's KV: no one can be allowed to make prompts that collide, and with a checksum like xxh3
anyone can. 2**64 pages would have to be hashed to find one pair, 2**128 for a given page. Knows nothing of who holds which page.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from hashlib import blake2b

import msgpack

from .handshake import layout_hash
from .messages import Job, KVLayout
from .payload_sizes import num_pages

DIGEST_BYTES = 16


class PageDigests:
    """Of a job's whole prompt pages, each computed when it is first asked for: who finds page 0 nowhere hashes no other."""

    def __init__(self, job: Job, layout: KVLayout) -> None:
        self._prompt: Sequence[int] = job.prompt
        self._sinks, self._page_tokens = layout.sink_tokens, layout.page_tokens
        self._num_pages = num_pages(len(job.prompt), layout)
        self._last = _root(layout, job.cache_salt)
        self._known: list[bytes] = []

    def __len__(self) -> int:
        return self._num_pages

    def __getitem__(self, page: int) -> bytes:
        """Raises IndexError for a page that the prompt does not have, or that is not whole."""
        if not 0 <= page < self._num_pages:
            raise IndexError(f"page {page} of a prompt with {self._num_pages} whole pages")
        while len(self._known) <= page:
            self._last = _digest(self._last + self._tokens(len(self._known)))
            self._known.append(self._last)
        return self._known[page]

    def __iter__(self) -> Iterator[bytes]:
        return (self[page] for page in range(self._num_pages))

    def _tokens(self, page: int) -> bytes:
        end = self._sinks + (page + 1) * self._page_tokens
        tokens = self._prompt[end - self._page_tokens if page else 0 : end]
        packed: bytes = msgpack.packb(list(tokens))  # takes whatever the wire can have brought
        return packed


@lru_cache(maxsize=64)  # few salts at a time, and one layout
def _root(layout: KVLayout, salt: str) -> bytes:
    return _digest(layout_hash(layout).encode() + salt.encode())


def _digest(data: bytes) -> bytes:
    return blake2b(data, digest_size=DIGEST_BYTES).digest()
