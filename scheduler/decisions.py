"""Why jobs went where they went: the newest decisions, by job. Knows nothing of how they were made."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from scheduler.forecast import LEVELS
from scheduler.jobs import TrackedJob
from scheduler.placement import Pair
from transport.messages import Explanation

MOST = 4096


class Decisions:
    """Of the newest `most` jobs; all operations take constant time."""

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._decisions: OrderedDict[str, dict[str, Any]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._decisions)

    def queued(self, job: TrackedJob, predicted_by: str, policy: str, placement: str) -> None:
        self._decisions[job.job_id] = {
            "policy": policy,
            "placement": placement,
            "prompt_tokens": job.prompt_tokens,
            "predicted_tokens": job.forecast.tokens,
            "levels": LEVELS,
            "predicted_by": predicted_by,
        }
        if len(self._decisions) > self._most:
            self._decisions.popitem(last=False)

    def placed(self, job: TrackedJob, pair: Pair) -> None:
        """The job's pair and its time in the queue stand in the job."""
        decision = self._decisions.get(job.job_id)
        if decision is not None:
            decision.update(
                prefill_worker=job.prefill_worker,
                decode_worker=job.decode_worker,
                queue_seconds=job.queue_seconds,
                expected_seconds=pair.seconds,
                why=pair.why,
            )

    def ended(self, job_id: str, output_tokens: int) -> None:
        if job_id in self._decisions:
            self._decisions[job_id]["output_tokens"] = output_tokens

    def explain(self, job_id: str) -> Explanation:
        decision = self._decisions.get(job_id)
        return Explanation(job_id=job_id, known=decision is not None, **(decision or {}))
