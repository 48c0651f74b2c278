"""Prompt pages that may serve more than one job, by the digest of their tokens: in which slot each lies, and how many jobs use it.

A page enters when the stream that brought it is complete, so its bytes have been checked, and never changes. Pages that no job uses
stay until their slots are wanted: the least recently used goes first, and of one prompt the last page before those that it continues,
since a page is of use only together with all before it. Knows nothing of bytes, of free slots or of residuals.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from decode.prefix_report import PrefixReport


@dataclass
class SharedPage:
    slot: int
    users: int


class PrefixStore:
    """Whoever uses a page uses all pages before it too, so a page has never more users than the one before."""

    def __init__(self) -> None:
        self.report = PrefixReport()
        self._pages: dict[bytes, SharedPage] = {}
        self._idle: OrderedDict[bytes, None] = OrderedDict()  # pages without users, the next to go first

    def __len__(self) -> int:
        return len(self._pages)

    @property
    def num_idle(self) -> int:
        """Pages that `evict` could give up."""
        return len(self._idle)

    def restart_report(self) -> None:
        """A scheduler that knows of no page is to hear of all, of each prompt the first pages first."""
        in_use = (digest for digest in self._pages if digest not in self._idle)
        self.report.restart([*in_use, *reversed(self._idle)])

    def use(self, digests: Sequence[bytes]) -> list[int]:
        """The slots of the longest prefix of a prompt's pages that is held; the caller uses them from now on."""
        slots = []
        for digest in digests:
            page = self._pages.get(digest)
            if page is None:
                break
            slots.append(self._use(digest, page))
        return slots

    def share(self, digests: Sequence[bytes], slots: Sequence[int]) -> list[int]:
        """Pages that lie complete in `slots` and follow pages that their owner uses, who uses these too from now on.

        Returns where each page lies now: in another slot, where it is held already. The owner's own slot is free then.
        """
        return [self._enter(digest, slot) for digest, slot in zip(digests, slots, strict=True)]

    def release(self, digests: Sequence[bytes]) -> None:
        """One user fewer of each; `digests` are in the order of the prompt."""
        for digest in reversed(digests):
            page = self._pages[digest]
            page.users -= 1
            if page.users == 0:
                self._idle[digest] = None

    def evict(self) -> int:
        """Gives up the next idle page; returns its slot, which is free. Raises KeyError when no page is idle."""
        digest, _ = self._idle.popitem(last=False)
        self.report.gone(digest)
        return self._pages.pop(digest).slot

    def _enter(self, digest: bytes, slot: int) -> int:
        page = self._pages.get(digest)
        if page is not None:
            return self._use(digest, page)
        self._pages[digest] = SharedPage(slot, users=1)
        self.report.added(digest)
        return slot

    def _use(self, digest: bytes, page: SharedPage) -> int:
        page.users += 1
        self._idle.pop(digest, None)
        return page.slot
