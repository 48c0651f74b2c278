"""Packhorse's own order: least expected use of the scarcer resource first, by class, with a bound on waiting and a check on itself.

    rank = (-priority class,  seconds * max(pages / pages of a worker, 1 / most jobs in its batch))

- Uncertainty: `seconds` are those of Gittins' index of the forecast's distribution, not of a point estimate: a job that may end soon is
  tried before one that is surely of middling length, and one that has outlived its likely lengths falls back. A quantile can be
  set instead (`level`).
- Memory x time, as LAMPS argues (arXiv 2410.18248), but of the dominant share (Ghodsi et al., NSDI '11): pages count only as
  far as a job takes more of the pool than of the batch.
- Preemption with a margin: a running job's rank counts KEEP of itself, so that near ties do not swap. TRAIL's cutoff (arXiv 2410.01035) has
  the same aim; the margin needs no length.
- No job waits more than `max_wait_seconds` because of the order, in the queue or preempted; after that it goes first until it is done.
- A predictor that is no better than chance on what has ended lately (`Trust`) is not followed: jobs then go by class and arrival.

KEEP, MAX_WAIT_SECONDS (half of the default deadline in the queue) and Trust's thresholds are ours.
"""

from __future__ import annotations

from scheduler.jobs import TrackedJob
from scheduler.policies.base import JobCost
from scheduler.policies.estimate import decode_seconds, prefill_seconds, remaining_tokens
from scheduler.policies.queue import Rank
from scheduler.policies.ranked import RankedPolicy
from scheduler.policies.trust import Trust

KEEP = 0.7
MAX_WAIT_SECONDS = 60.0


class Packhorse(RankedPolicy):
    name = "packhorse"
    preempts = True

    def __init__(
        self,
        cost: JobCost | None = None,
        *,
        level: float | None = None,
        keep: float = KEEP,
        max_wait_seconds: float = MAX_WAIT_SECONDS,
    ) -> None:
        super().__init__(cost, max_wait_seconds=max_wait_seconds)
        self.level, self.keep = level, keep
        self.trust = Trust()
        self._expected: dict[str, float] = {}  # use when the job was queued

    # ---- ranks

    def queue_rank(self, job: TrackedJob) -> Rank:
        return (float(-job.priority), self._use(job) if self.trust.trusted else 0.0)

    def run_rank(self, job: TrackedJob, now: float) -> Rank:
        running = job.progress.running
        if not self.trust.trusted:
            return (float(-job.priority), 0.0 if running else 1.0)
        return (float(-job.priority), self._use(job) * (self.keep if running else 1.0))

    def _use(self, job: TrackedJob) -> float:
        """Seconds that are left times the dominant share."""
        tokens = (
            job.forecast.gittins(job.progress.generated) if self.level is None else remaining_tokens(job, self.level)
        )
        return (prefill_seconds(job, self.cost) + decode_seconds(job, self.cost, tokens)) * self._share(job)

    def _share(self, job: TrackedJob) -> float:
        """The dominant share of a worker that the job takes; 1 while no worker is known."""
        if self.room is None:
            return 1.0
        return max(job.pages / max(1, self.room.pages), 1 / max(1, self.room.max_jobs))

    # ---- what the forecasts were worth

    def add(self, job: TrackedJob, now: float) -> None:
        self._expected[job.job_id] = self._use(job)
        super().add(job, now)

    def observe(self, job: TrackedJob, output_tokens: int, now: float) -> None:
        expected = self._expected.get(job.job_id)
        if expected is None:
            return
        seconds = self.cost.prefill_seconds(job.prompt_tokens)
        seconds += output_tokens * self.cost.step_seconds(job.prompt_tokens + output_tokens // 2, 1)
        actual = seconds * self._share(job)
        if self.trust.add(expected, actual):
            self._queue.rerank(self.queue_rank)

    def forget(self, job_id: str) -> None:
        super().forget(job_id)
        self._expected.pop(job_id, None)
