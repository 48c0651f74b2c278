"""Waiting for what another task brings about, for as long as a busy machine may need."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

PATIENCE_SECONDS = (
    30.0  # for what is sure to come: a machine may stand still for seconds; a wait in vain costs this only once
)


async def until(condition: Callable[[], object], timeout_seconds: float = PATIENCE_SECONDS) -> None:
    """Raises TimeoutError: it did not come about in that time."""
    async with asyncio.timeout(timeout_seconds):
        while not condition():
            await asyncio.sleep(0.005)
