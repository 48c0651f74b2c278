"""What a load test sends: planned requests, whatever they were read or made from.

This file knows nothing of files, clocks or HTTP.
"""

from __future__ import annotations

from dataclasses import dataclass

DEFAULT_MAX_TOKENS = 64


@dataclass(frozen=True)
class PlannedRequest:
    """One request to send. `arrival_seconds` counts from the dataset's first request and is None where it has no times."""

    prompt: str
    max_tokens: int
    arrival_seconds: float | None = None


def output_limit(wanted: int | None, cap: int | None) -> int:
    """Tokens to ask for: the dataset's own length, at most `cap`; without one, `cap`, or DEFAULT_MAX_TOKENS."""
    if wanted is None:
        return cap or DEFAULT_MAX_TOKENS
    return max(1, min(wanted, cap)) if cap else max(1, wanted)
