"""What is known of one request after it was sent: times, tokens, and how it ended.

All times are seconds from the start of the run. This file knows nothing of HTTP.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

Status = Literal["ok", "failed", "interrupted"]


@dataclass
class RequestRecord:
    """One request. A failed one keeps the times and chunks that it had got to.

    `cause` is a short name for counting (http_429, error_event, dropped, timeout, ...), `error` the message.
    `tokens_counted` marks token counts that the server did not report: then one chunk counts as one token.
    """

    index: int
    scheduled: float
    max_tokens: int
    sent: float | None = None
    first_token: float | None = None
    last_token: float | None = None
    finished: float | None = None
    chunk_times: list[float] = field(default_factory=list)
    prompt_tokens: int | None = None
    completion_tokens: int = 0
    tokens_counted: bool = False
    finish_reason: str | None = None
    status: Status = "interrupted"
    cause: str | None = None
    error: str | None = None
    kv_transfer: dict[str, Any] | None = None

    @property
    def ttft(self) -> float | None:
        """Time to first token, from the scheduled arrival."""
        return None if self.first_token is None else self.first_token - self.scheduled

    @property
    def tpot(self) -> float | None:
        """Mean time per output token after the first; None for fewer than two tokens."""
        if self.first_token is None or self.last_token is None or self.completion_tokens < 2:
            return None
        return (self.last_token - self.first_token) / (self.completion_tokens - 1)

    @property
    def jct(self) -> float | None:
        """Job completion time: from the scheduled arrival to the last token."""
        return None if self.last_token is None else self.last_token - self.scheduled

    @property
    def itl(self) -> list[float]:
        """Times between consecutive chunks that held text."""
        return [later - earlier for earlier, later in zip(self.chunk_times, self.chunk_times[1:], strict=False)]

    def failed(self, cause: str, error: str) -> None:
        self.status, self.cause, self.error = "failed", cause, error

    def as_json(self) -> dict[str, Any]:
        return {**vars(self), "ttft": self.ttft, "tpot": self.tpot, "jct": self.jct}
