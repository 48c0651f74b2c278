"""Questions to the scheduler whose answers are waited for, by a key that the answer carries as well. Knows nothing of their contents."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable
from typing import Any

from packhorse.errors import PackhorseError, UnavailableError
from transport.messages import Model


class Questions:
    """`send` is False when there is no connection. Equal keys share their answers."""

    def __init__(self, send: Callable[[Model], bool]) -> None:
        self._send = send
        self._waiting: dict[Hashable, set[asyncio.Future[Any]]] = {}

    async def ask(self, key: Hashable, question: Model, timeout_seconds: float) -> Any:
        """The answer. Raises UnavailableError: no connection, no answer in time, or the scheduler was lost meanwhile."""
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(key, set()).add(answer)
        try:
            if not self._send(question):
                raise UnavailableError("there is no connection to the scheduler")
            async with asyncio.timeout(timeout_seconds):
                return await answer
        except TimeoutError as error:
            raise UnavailableError(f"the scheduler has not answered within {timeout_seconds:g} s") from error
        finally:
            self._forget(key, answer)

    def answered(self, key: Hashable, answer: Any) -> None:
        """An answer that nobody waits for any more changes nothing."""
        for future in self._waiting.get(key, ()):
            if not future.done():
                future.set_result(answer)

    def fail_all(self, error: PackhorseError) -> None:
        for futures in self._waiting.values():
            for future in futures:
                if not future.done():
                    future.set_exception(error)

    def _forget(self, key: Hashable, answer: asyncio.Future[Any]) -> None:
        futures = self._waiting[key]
        futures.discard(answer)
        if not futures:
            del self._waiting[key]
