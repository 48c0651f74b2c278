"""Our own order: least expected use of workers first, by class, with a bound on waiting and a check on itself.

    rank = (-priority class,  prefill seconds + expected tokens * seconds of a token's place)

- Worker-seconds: a prefill takes a whole worker, a token only its place in a batch: a / n + b * context + c of the decode model, where n
  such jobs fill a worker, by places or by pages, whichever is the scarcer (dominant share: Ghodsi et al., NSDI '11; memory x time:
  LAMPS, arXiv 2410.18248). So what a job takes counts at the stage where it takes it, whichever stage binds; a prompt's length is known
  even where outputs are not. A job that was dropped takes its prefill again, and a place for each token up to where it was.
- Uncertainty: the expected tokens are Gittins' index of the forecast's distribution, given what is generated, not a point estimate: a
  job that may end soon is tried before one that is surely of middling length, and one that has outlived its likely lengths falls
  back. Where the mean is predicted apart from the quantiles, they are stretched to it. A quantile can be set instead (`level`).
- Preemption with a margin: a running job's rank counts KEEP of itself, so that only much shorter jobs stop it: the less certain the
  predictions, the less preemption gains. TRAIL's cutoff (arXiv 2410.01035) has the same aim; the margin needs no length.
- Ageing: a job that has waited for `max_wait_seconds`, in the queue or preempted, goes first, in order of arrival, until it is done.
  Such jobs hold at most a share of the places (`Overdue`). As long as that share carries them, the bound holds for every job, whatever
  its forecast; in an overload that lasts the rest still goes by rank.
- Checks on itself (`Trust`): lengths that agree no better than chance with those of jobs that have ended are not followed, nor are limits
  taken for lengths where nothing is predicted; every job then counts with the distribution of recent lengths (`RecentLengths`). If the
  order by use is itself no better than chance, jobs go by class and arrival.

KEEP, MAX_WAIT_SECONDS (half of the default deadline in the queue), Overdue's share and Trust's thresholds are ours.
"""

from __future__ import annotations

from collections.abc import Iterator

from scheduler.forecast import Forecast
from scheduler.jobs import TrackedJob
from scheduler.policies.base import JobCost, Room
from scheduler.policies.estimate import context_tokens, place_seconds, prefill_seconds, replay_context
from scheduler.policies.overdue import SHARE, Overdue
from scheduler.policies.queue import Rank
from scheduler.policies.ranked import RankedPolicy
from scheduler.policies.trust import Trust
from scheduler.recent import RecentLengths

KEEP = 0.3
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
        overdue_share: float = SHARE,
    ) -> None:
        super().__init__(cost, max_wait_seconds=max_wait_seconds)
        self.level, self.keep = level, keep
        self.lengths, self.order, self.recent = Trust(), Trust(), RecentLengths()
        self.overdue = Overdue(overdue_share)
        self._expected: dict[str, tuple[float, float]] = {}  # tokens and use when the job was queued
        self._uses: dict[str, tuple[tuple[int, int, Forecast, Room | None], float]] = {}
        self._turn = ""  # the head of the queue, where it is that because it is overdue

    # ---- ranks

    def queue_rank(self, job: TrackedJob) -> Rank:
        return (float(-job.priority), self._use(job) if self.order.trusted else 0.0)

    def run_rank(self, job: TrackedJob, now: float) -> Rank:
        running = job.progress.running
        if not self.order.trusted:
            return (float(-job.priority), 0.0 if running else 1.0)
        return (float(-job.priority), self._use(job) * (self.keep if running else 1.0))

    def _use(self, job: TrackedJob) -> float:
        """Worker-seconds that are left, as of when the job last made progress: plans ask far oftener than that."""
        state = (job.progress.generated, job.progress.to_replay, job.forecast, self.room)
        known = self._uses.get(job.job_id)
        if known is not None and known[0] == state:
            return known[1]
        use = self._worker_seconds(job)
        self._uses[job.job_id] = (state, use)
        return use

    def _worker_seconds(self, job: TrackedJob) -> float:
        tokens = self._tokens(job, self._forecast(job))
        use = tokens * place_seconds(job, self.cost, self.room, context_tokens(job) + tokens / 2)
        if replay := job.progress.to_replay:
            use += replay * place_seconds(job, self.cost, self.room, replay_context(job))
        return prefill_seconds(job, self.cost) + use

    def _forecast(self, job: TrackedJob) -> Forecast:
        return job.forecast if self.lengths.trusted else self.recent.forecast(job.job.sampling.max_tokens)

    def _tokens(self, job: TrackedJob, forecast: Forecast) -> float:
        """That are expected to come."""
        generated = job.progress.generated
        return forecast.gittins(generated) if self.level is None else forecast.remaining(self.level, generated)

    # ---- those that have waited for too long

    def head(self, now: float) -> TrackedJob | None:
        oldest = self._queue.overdue(now) if self.overdue.turn else None
        self._turn = oldest.job_id if oldest is not None else ""
        return oldest or self._queue.best()

    def upcoming(self, now: float) -> Iterator[TrackedJob]:
        """By rank behind the head: whose turn comes after it depends on what is placed until then."""
        head = self.head(now)
        if head is not None:
            yield head
            yield from (job for job in self._queue.by_rank() if job is not head)

    def remove(self, job_id: str) -> None:
        if job_id in self._queue:
            self.overdue.place(job_id)
            if job_id == self._turn:
                self.overdue.favour(job_id)
        super().remove(job_id)

    def _is_promoted(self, job: TrackedJob, now: float) -> bool:
        if self.overdue.is_favoured(job.job_id) or job.job_id == self._turn:
            return True
        preempted = job.progress.generated > 0 and not job.progress.running
        if preempted and job.progress.waiting_seconds(now) >= self.max_wait_seconds and self.overdue.turn:
            self.overdue.favour(job.job_id)
            return True
        return False

    # ---- what the forecasts were worth

    def add(self, job: TrackedJob, now: float) -> None:
        if job.job_id not in self._expected:  # else it comes again, after it was dropped
            self._expected[job.job_id] = self._tokens(job, job.forecast), self._use(job)
        super().add(job, now)

    def observe(self, job: TrackedJob, output_tokens: int, now: float) -> None:
        expected = self._expected.get(job.job_id)
        if expected is None:
            return
        tokens, use = expected
        context = job.prompt_tokens + output_tokens / 2
        actual = self.cost.prefill_seconds(job.prompt_tokens)
        actual += output_tokens * place_seconds(job, self.cost, self.room, context)
        changed = self.lengths.add(tokens, output_tokens), self.order.add(use, actual), self.recent.add(output_tokens)
        if any(changed):
            self._uses.clear()
            self._queue.rerank(self.queue_rank)

    def forget(self, job_id: str) -> None:
        super().forget(job_id)
        self.overdue.forget(job_id)
        self._expected.pop(job_id, None)
        self._uses.pop(job_id, None)
