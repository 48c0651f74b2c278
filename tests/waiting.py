"""Waiting for what another task brings about."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


async def until(condition: Callable[[], bool], timeout_seconds: float = 5.0) -> None:
    """Raises TimeoutError: it did not come about in that time."""
    async with asyncio.timeout(timeout_seconds):
        while not condition():
            await asyncio.sleep(0.005)
