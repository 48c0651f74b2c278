"""What the scheduler has yet to hear of the prefix pages that are held here: net changes, oldest first, some at a time.

Knows nothing of slots, of jobs, or of when a report is sent.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

from transport.messages import PrefixChanges

MOST_DIGESTS = 4096  # of one report: 64 KiB


class PrefixReport:
    def __init__(self) -> None:
        self._pending: dict[bytes, bool] = {}  # whether it is held, where the scheduler believes otherwise

    def added(self, digest: bytes) -> None:
        self._changed(digest, True)

    def gone(self, digest: bytes) -> None:
        self._changed(digest, False)

    def restart(self, held: Iterable[bytes]) -> None:
        """Whoever listens knows of nothing that is held."""
        self._pending = dict.fromkeys(held, True)

    def take(self, worker_id: str) -> PrefixChanges | None:
        """The next changes to report, which then count as reported; None where there are none."""
        if not self._pending:
            return None
        some = list(islice(self._pending, MOST_DIGESTS))
        held = {digest: self._pending.pop(digest) for digest in some}
        return PrefixChanges(
            worker_id=worker_id,
            added=b"".join(digest for digest, is_held in held.items() if is_held),
            gone=b"".join(digest for digest, is_held in held.items() if not is_held),
        )

    def _changed(self, digest: bytes, is_held: bool) -> None:
        if self._pending.pop(digest, is_held) is is_held:  # else the scheduler believes what is true again
            self._pending[digest] = is_held
