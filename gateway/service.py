"""What every endpoint of one gateway shares. Made once, handed to all, and knows nothing of HTTP."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

from gateway.backend import Backend
from gateway.failure import shown
from gateway.limits import Limits
from gateway.metrics import Metrics
from model.text import Tokenizer
from packhorse.errors import ModelNotFoundError

LONG_PROMPT_CHARS = 16 * 1024
Result = TypeVar("Result")


@dataclass
class Service:
    """`model_name` is what clients call the model; `created` is seconds since the epoch."""

    backend: Backend
    tokenizer: Tokenizer
    model_name: str
    max_body_bytes: int
    api_key: bytes | None = None
    limits: Limits = field(init=False)
    metrics: Metrics = field(init=False)
    created: int = field(default_factory=lambda: int(time.time()))
    draining: bool = False
    _num_requests: int = 0
    _idle: asyncio.Event = field(default_factory=asyncio.Event, repr=False)
    _encoder: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(max_workers=1, thread_name_prefix="tokenize"), repr=False
    )

    def __post_init__(self) -> None:
        self.limits = Limits(self.tokenizer.max_context, self.tokenizer.vocab_size)
        self.metrics = Metrics(lambda: self.backend.status)
        self.backend.on_ended = self.metrics.observe_end

    @contextmanager
    def request(self, *, counted: bool) -> Iterator[None]:
        """Around the answering of a request; a stop waits for the counted ones."""
        self._num_requests += counted
        try:
            yield
        finally:
            self._num_requests -= counted
            if not self._num_requests:
                self._idle.set()

    async def idle(self) -> None:
        """Waits until no counted request is being answered."""
        while self._num_requests:
            self._idle.clear()
            await self._idle.wait()

    async def tokenize(self, num_chars: int, encode: Callable[[], Result]) -> Result:
        """`encode()`, in a thread when the text is long, so that it does not hold up the streams of others."""
        if num_chars < LONG_PROMPT_CHARS:
            return encode()
        return await asyncio.get_running_loop().run_in_executor(self._encoder, encode)

    def check_model(self, name: str) -> None:
        """Raises ModelNotFoundError unless `name` is the model served here."""
        if name != self.model_name:
            raise ModelNotFoundError(f"model={shown(name)} is not served here; {self.model_name!r} is", param="model")

    @staticmethod
    def new_id(prefix: str) -> str:
        """Unique among all gateways, since the scheduler knows jobs by it."""
        return f"{prefix}-{uuid.uuid4().hex}"

    def close(self) -> None:
        self._encoder.shutdown(wait=False, cancel_futures=True)
