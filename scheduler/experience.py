"""What the scheduler believes of jobs and workers, and what it makes of their reports: a predictor of lengths, a cost model.

Predicting happens where a job is queued; learning from jobs that have ended is asked for by `learn`, off the critical path. Knows
nothing of queues, places or messages to send.
"""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from statistics import median

from packhorse.errors import ConfigError
from scheduler.cost import DEFAULT_PRIOR, CostModel, ErrorSummary, ErrorWindow, WorkerCost
from scheduler.forecast import Forecast
from scheduler.jobs import TrackedJob
from scheduler.planner import registered_prior
from scheduler.policies import Room
from scheduler.predictor import JobFeatures, make_predictor
from scheduler.refinement import Refinement
from scheduler.workers import Worker, Workers
from transport.messages import JobStats, Preempted, Role, WorkerLoad

log = logging.getLogger(__name__)

REFRESH_SECONDS = 5.0


class TypicalCost:
    """The seconds of a worker in the middle of the fleet, for the ranks of jobs that have no worker yet."""

    def __init__(self) -> None:
        self._cost = WorkerCost.of(DEFAULT_PRIOR)
        self._at: float | None = None

    def prefill_seconds(self, tokens: int, cached_tokens: int = 0) -> float:
        return self._cost.prefill_seconds(tokens, cached_tokens)

    def step_seconds(self, context_tokens: int, batch: int) -> float:
        return self._cost.step_seconds(context_tokens, batch)

    def transfer_seconds(self, num_bytes: int) -> float:
        a, b = self._cost.transfer.coefficients
        return a + b * num_bytes

    def refresh(self, cost: CostModel, workers: Workers, now: float) -> None:
        """Takes the median of each coefficient over the workers of its role, at most every REFRESH_SECONDS."""
        if self._at is not None and now - self._at < REFRESH_SECONDS:
            return
        self._at = now
        kinds: tuple[tuple[str, Role], ...] = (("prefill", "prefill"), ("transfer", "prefill"), ("decode", "decode"))
        for kind, role in kinds:
            fits = [getattr(cost.worker(worker.worker_id), kind).coefficients for worker in workers.of_role(role)]
            if fits:
                getattr(self._cost, kind).coefficients = tuple(median(column) for column in zip(*fits, strict=True))


class Experience:
    """`cost` and `typical` always are; `predictor` is None where the configuration says none.

    `embedding` names a sentence-transformers model for the predictor, `tokenizer` the folder with the tokenizer that makes its text;
    `file` is where `save` writes what was learned, which is taken over from there if it exists. Raises ConfigError for an unknown
    predictor, for the oracle, which only a simulation can feed, for an embedding that cannot be had or that the predictor has no use
    for, and for a file that does not fit.
    """

    def __init__(
        self, predictor: str, embedding: str | None = None, tokenizer: str | None = None, file: str | None = None
    ) -> None:
        self.cost, self.typical = CostModel(), TypicalCost()
        if predictor == "oracle":
            raise ConfigError("predictor='oracle' knows lengths beforehand: it is for simulations", param="predictor")
        folder = Path(tokenizer) if tokenizer is not None else None
        self._file = Path(file) if file is not None else None
        known = self._file if self._file is not None and self._file.exists() else None
        made = make_predictor(predictor, path=known, embedding=embedding, embedding_tokenizer=folder)
        self.predictor = made if predictor != "none" else None
        self._learning = threading.Lock()  # a file has one state of the predictor, not the halves of two
        self._saved: int | None = None  # jobs that were learned from when the file was written
        self._refinement = Refinement(informed=self.predictor is not None)
        self._lengths = ErrorWindow()
        self._told: set[tuple[str, str]] = set()  # (device, what its prior rests on), once each in the log

    def forecast(self, job: TrackedJob) -> str:
        """Gives the job its forecast. Returns what that rests on."""
        if self.predictor is None:
            return "max_tokens"
        said = self.predictor.predict(JobFeatures.of(job.job))
        job.believe(Forecast.of(said, job.job.sampling.max_tokens))
        return said.source

    def is_refined(self, job: TrackedJob) -> bool:
        """Whether scores are in the job's forecast."""
        return self._refinement.first(job) is not job.forecast

    def ended(self, job: TrackedJob, output_tokens: int) -> None:
        """The job ended by itself; `learn` learns from it."""
        if self.predictor is not None:
            self._lengths.add(self._refinement.first(job).quantile(0.5), output_tokens)
            self.predictor.observe(JobFeatures.of(job.job), output_tokens)

    def learn(self, budget_seconds: float) -> int:
        """Learns from ended jobs; returns how many. May run on another thread than everything else here."""
        if self.predictor is None or not self.predictor.pending:
            return 0
        with self._learning:
            return self.predictor.learn(budget_seconds)

    def save(self) -> bool:
        """Writes the file, if there is one and it lacks anything; returns whether it did. On any thread. Raises ConfigError."""
        if self.predictor is None or self._file is None:
            return False
        with self._learning:
            learned = self.predictor.learned
            if learned == self._saved:
                return False
            self.predictor.save(self._file)
            self._saved = learned
        return True

    def errors(self) -> dict[str, ErrorSummary]:
        """Predicted against actual: output lengths (the median), and the cost model's times on all workers together."""
        fleet = self.cost.fleet
        windows = {
            "output_tokens": self._lengths,
            "prefill": fleet.prefill,
            "decode": fleet.decode,
            "transfer": fleet.transfer,
            "host": fleet.host,
        }
        return {kind: window.summary() for kind, window in windows.items()}

    # ---- workers

    def joined(self, worker: Worker) -> None:
        """Its costs start from the planner's figures of its device, where that has any."""
        prior, basis = registered_prior(worker.info)
        self.cost.add(worker.worker_id, prior)
        device = worker.info.device or "a device that is not named"
        if (device, basis) not in self._told:
            self._told.add((device, basis))
            log.info("until they report, workers on %s are predicted by %s", device, basis)

    def left(self, worker: Worker) -> None:
        self.cost.forget(worker.worker_id)

    def prefilled(self, job: TrackedJob, stats: JobStats, decode: Worker | None) -> None:
        """Of a job on a prefill worker that is registered; `decode` is its decode worker, if it has one and that still is."""
        self.cost.worker(job.prefill_worker).observe_prefill(job.prompt_tokens, stats.prefill_seconds)
        if decode is not None and stats.ship_seconds > 0:
            self.cost.observe_transfer(job.prefill_worker, decode.worker_id, stats.bytes_shipped, stats.ship_seconds)

    def moved(self, worker: Worker, message: Preempted) -> None:
        """A job's pages went to host memory."""
        if message.move_seconds > 0:
            self.cost.worker(worker.worker_id).observe_move(message.moved_bytes, message.move_seconds)

    def heard(self, worker: Worker, load: WorkerLoad) -> None:
        """A heartbeat: the mean of the steps since the one before, how far each job is, and what its hidden state says, if scored."""
        if load.step_seconds > 0 and load.step_jobs > 0:
            cost = self.cost.worker(worker.worker_id)
            cost.observe_step(load.step_context_tokens, load.step_jobs, load.step_seconds)
        for job_id, generated in load.generated.items():
            job = worker.jobs.get(job_id)
            if job is not None:
                job.progress.report(min(generated, job.job.sampling.max_tokens))
        for job_id, score in load.scores.items():
            job = worker.jobs.get(job_id)
            if job is not None:
                self._refinement.take(job, score)


def largest_room(workers: Workers) -> Room | None:
    """Of the decode workers, by pages and then by places; None where there is none."""
    rooms = [(worker.info.capacity_pages, worker.info.max_jobs) for worker in workers.of_role("decode")]
    return Room(*max(rooms)) if rooms else None
