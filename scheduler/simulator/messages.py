"""Messages as simulated gateways send them: the real classes. A job alone is built unchecked: checks would copy its prompt."""

from __future__ import annotations

from functools import lru_cache

from scheduler.simulator.prompts import SimPrompt
from transport.messages import Job, Sampling, Submit, ToolPause

REPLY_TO = "inproc://simulated"


@lru_cache(maxsize=4096)
def _job_of(max_tokens: int) -> Job:
    """A job to make others from."""
    return Job(job_id="", prompt=(0,), sampling=Sampling(max_tokens=max_tokens, seed=0), reply_to=REPLY_TO)


def submit(
    job_id: str, prompt: SimPrompt, max_tokens: int, priority: int, pause: tuple[int, float] | None = None
) -> Submit:
    """`pause`: after how many tokens of output, for how many seconds."""
    tool_pause = ToolPause(after_tokens=pause[0], seconds=pause[1]) if pause is not None else None
    fields = {"job_id": job_id, "prompt": prompt, "priority": priority, "tool_pause": tool_pause}
    return Submit(job=_job_of(max_tokens).model_copy(update=fields))
