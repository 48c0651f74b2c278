"""How many pages a job needs on a decode worker: the arithmetic of the page format from a layout's fields alone, without torch."""

from __future__ import annotations

from transport.messages import Job, KVLayout


def num_pages(num_tokens: int, layout: KVLayout) -> int:
    """Closed pages of a sequence of `num_tokens`; sinks and the open block lie in the residual."""
    return max(0, num_tokens - layout.sink_tokens) // layout.page_tokens


def pages_needed(job: Job, layout: KVLayout) -> int:
    """Pages to reserve: those of the longest sequence that the job can become."""
    return num_pages(len(job.prompt) + job.sampling.max_tokens, layout)
