"""Why jobs went where they went, and what became of them: the newest decisions, by job. Knows nothing of how they were made."""

from __future__ import annotations

from collections import OrderedDict
from itertools import islice
from typing import Any

from packhorse.errors import PackhorseError
from scheduler.cost import ErrorWindow
from scheduler.eviction import Eviction
from scheduler.forecast import LEVELS
from scheduler.jobs import DONE, TrackedJob, failed
from scheduler.placement import Pair
from transport.messages import Eviction as ToldEviction
from transport.messages import Explanation, Job

MOST = 4096
MOST_EVICTIONS = 8  # of one job


class Decisions:
    """Of the newest `most` jobs. Recording takes constant time and keeps nothing of a job's prompt."""

    def __init__(self, most: int = MOST) -> None:
        self.errors = ErrorWindow()  # expected against actual seconds from placement to the end
        self._most = most
        self._decisions: OrderedDict[str, dict[str, Any]] = OrderedDict()  # fields of an Explanation
        self._placed_at: dict[str, float] = {}  # of those under way

    def __len__(self) -> int:
        return len(self._decisions)

    # ---- what happens

    def queued(self, job: TrackedJob, predicted_by: str, policy: str, placement: str) -> None:
        self._add(
            job.job,
            policy=policy,
            placement=placement,
            pages=job.pages,
            predicted_tokens=job.forecast.tokens,
            levels=LEVELS,
            predicted_by=predicted_by,
        )

    def refused(self, job: Job, error: PackhorseError) -> None:
        """The job was not even queued."""
        self._add(job, outcome=failed(error).label, error=error.message)

    def placed(self, job: TrackedJob, pair: Pair, now: float) -> None:
        """The job's pair and its time in the queue stand in the job."""
        self._placed_at.setdefault(job.job_id, now)
        self._update(
            job.job_id,
            prefill_worker=job.prefill_worker,
            decode_worker=job.decode_worker,
            queue_seconds=job.queue_seconds,
            expected_seconds=pair.seconds,
            why=pair.why,
        )

    def evicted(self, job: TrackedJob, worker_id: str, eviction: Eviction) -> None:
        """The job gives way to another on its decode worker."""
        known = self._decisions.get(job.job_id)
        if known is not None:
            told = ToldEviction(
                worker_id=worker_id,
                way="drop" if eviction.drop else "swap",
                swap_seconds=eviction.swap_seconds,
                drop_seconds=eviction.drop_seconds,
                generated_tokens=job.progress.generated,
            )
            known["evictions"] = (*known.get("evictions", ()), told)[-MOST_EVICTIONS:]

    def ended(self, job: TrackedJob, now: float) -> None:
        """The job has its outcome."""
        assert job.outcome is not None
        placed_at = self._placed_at.pop(job.job_id, None)
        if placed_at is not None:
            self._update(job.job_id, took_seconds=now - placed_at, queue_seconds=job.queue_seconds)
        if job.outcome is DONE:
            expected = self._decisions.get(job.job_id, {}).get("expected_seconds", 0.0)
            if expected > 0 and placed_at is not None and now > placed_at:
                self.errors.add(expected, now - placed_at)
            self._update(job.job_id, output_tokens=job.stats.completion_tokens)
        error = job.outcome.error.message if job.outcome.error is not None else ""
        self._update(job.job_id, outcome=job.outcome.label, error=error, preemptions=job.preemptions)

    # ---- what is asked

    def named(self, job_id: str) -> list[Explanation]:
        """The job of that id, or those whose ids are it, a dash and one more piece: a completion's, in the order in which they came."""
        if job_id in self._decisions:
            return [self._explanation(job_id)]
        return [self._explanation(known) for known in self._decisions if known.rpartition("-")[0] == job_id]

    def newest(self, count: int) -> list[Explanation]:
        return [self._explanation(job_id) for job_id in islice(reversed(self._decisions), count)]

    def _explanation(self, job_id: str) -> Explanation:
        return Explanation(job_id=job_id, **self._decisions[job_id])

    def _add(self, job: Job, **fields: Any) -> None:
        asked = {
            "prompt_tokens": len(job.prompt),
            "max_tokens": job.sampling.max_tokens,
            "priority": job.priority,
            "max_ttft_seconds": job.max_ttft_seconds,
        }
        self._decisions[job.job_id] = asked | fields
        self._decisions.move_to_end(job.job_id)
        if len(self._decisions) > self._most:
            self._decisions.popitem(last=False)

    def _update(self, job_id: str, **fields: Any) -> None:
        if job_id in self._decisions:
            self._decisions[job_id].update(fields)
