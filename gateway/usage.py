"""The usage object of a response: OpenAI's token counts, and what moving the KV cache took (`kv_transfer`, an extension)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gateway.choice import Choice
from transport.messages import JobStats


def usage(choices: Sequence[Choice], choices_per_prompt: int) -> dict[str, Any]:
    """A prompt counts once, however many choices it has."""
    prompt_tokens = sum(len(choice.job.prompt) for choice in choices[::choices_per_prompt])
    completion_tokens = sum(choice.num_tokens for choice in choices)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "kv_transfer": kv_transfer([choice.stats or JobStats() for choice in choices]),
    }


def kv_transfer(stats: Sequence[JobStats]) -> dict[str, Any]:
    """Bytes are summed over the choices; workers and seconds are plain values for one choice, else lists in its order."""

    def each(name: str) -> Any:
        values = [getattr(job, name) for job in stats]
        return values[0] if len(values) == 1 else values

    return {
        "prefill_worker": each("prefill_worker"),
        "decode_worker": each("decode_worker"),
        "bytes_shipped": sum(job.bytes_shipped for job in stats),
        "bytes_held": sum(job.bytes_held for job in stats),
        "raw_bytes": sum(job.raw_bytes for job in stats),
        "queue_seconds": each("queue_seconds"),
        "prefill_seconds": each("prefill_seconds"),
    }
