"""The decode side of page streams: accepts links and shakes hands; page_link.py serves each.

Everything here runs on the event loop's thread. This file knows nothing of pools or of what the sink does with pages.
"""

from __future__ import annotations

import asyncio
import logging

from packhorse.errors import ConfigError, HandshakeError, PackhorseError, TransportError

from .connect import listen
from .handshake import HANDSHAKE_SECONDS, admit
from .link import Link, Listener
from .messages import KVLayout
from .page_link import PageLink, PageSink

log = logging.getLogger(__name__)

CREDIT_BYTES = 32 * 1024 * 1024


class PageReceiver:
    """Listens for page links. Make it with `listen`."""

    def __init__(
        self,
        listener: Listener,
        worker_id: str,
        layout: KVLayout,
        sink: PageSink,
        secret: bytes | None,
        credit_bytes: int,
        handshake_seconds: float = HANDSHAKE_SECONDS,
    ) -> None:
        self.address = listener.address
        self._listener = listener
        self._worker_id = worker_id
        self._layout = layout
        self._sink = sink
        self._secret = secret
        self._credit_bytes = credit_bytes
        self._handshake_seconds = handshake_seconds
        self._peers: set[PageLink] = set()
        self._serving: dict[asyncio.Task[None], Link] = {}
        self._closed = False
        self._accepting = asyncio.create_task(self._accept(), name=f"accept {self.address}")

    @classmethod
    async def listen(
        cls,
        address: str,
        worker_id: str,
        layout: KVLayout,
        sink: PageSink,
        secret: bytes | None = None,
        credit_bytes: int = CREDIT_BYTES,
        handshake_seconds: float = HANDSHAKE_SECONDS,
    ) -> PageReceiver:
        """Each link may have `credit_bytes` of payload under way. Raises ConfigError."""
        if credit_bytes < 1:
            raise ConfigError(f"credit_bytes={credit_bytes} lets nothing through; it takes 1 or more")
        listener = await listen(address, secret=secret)
        return cls(listener, worker_id, layout, sink, secret, credit_bytes, handshake_seconds)

    @property
    def num_links(self) -> int:
        """Links that have shaken hands and are not lost."""
        return len(self._peers)

    def abort(self, job_id: str, error: PackhorseError) -> None:
        """Gives up the stream of `job_id`, if one is open, and tells the sender why. The sink is not called."""
        for peer in self._peers:
            if job_id in peer.streams:
                peer.abort(job_id, error)

    async def close(self) -> None:
        """Idempotent; open streams are aborted with LinkClosedError."""
        if self._closed:
            return
        self._closed = True
        await self._listener.close()
        tasks, links = [self._accepting, *self._serving], list(self._serving.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for link in links:  # a task that never ran has not closed its own
            await link.close()

    async def _accept(self) -> None:
        while True:
            link = await self._listener.accept()
            task = asyncio.create_task(self._serve(link), name=f"page link {link.address}")
            self._serving[task] = link
            task.add_done_callback(self._serving.pop)

    async def _serve(self, link: Link) -> None:
        """One link, from its handshake to its end."""
        try:
            hello = await admit(
                link, self._worker_id, self._layout, self._secret, self._credit_bytes, self._handshake_seconds
            )
            peer = PageLink(link, hello.worker_id, self._layout, self._sink, self._peers)
            await peer.run()
        except HandshakeError as error:
            log.warning("refused the page link of %s: %s", link.address, error)
        except TransportError as error:
            log.warning("the page link of %s ended before it began: %s", link.address, error)
        finally:
            await link.close()
