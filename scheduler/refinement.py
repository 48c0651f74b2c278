"""What scores from hidden states make of the forecasts of running jobs: TRAIL's belief per job, from its first score on.

Knows nothing of heartbeats or workers. A job that is never scored keeps its forecast and costs nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from weakref import WeakKeyDictionary

from scheduler.forecast import LEVELS, Forecast
from scheduler.jobs import TrackedJob
from scheduler.predictor import Prediction, Refiner
from transport.messages import LengthScore


@dataclass(frozen=True, slots=True)
class _Scored:
    """`first` is the forecast before any score."""

    first: Forecast
    refiner: Refiner
    span_tokens: int


class Refinement:
    """Beliefs live as long as their jobs. `informed`: jobs have forecasts by a predictor; else all lengths are likely at first."""

    def __init__(self, informed: bool) -> None:
        self._informed = informed
        self._scored: WeakKeyDictionary[TrackedJob, _Scored] = WeakKeyDictionary()

    def first(self, job: TrackedJob) -> Forecast:
        """The job's forecast before any score."""
        scored = self._scored.get(job)
        return job.forecast if scored is None else scored.first

    def take(self, job: TrackedJob, score: LengthScore) -> bool:
        """Refines the job's forecast. Returns False, and changes nothing, for a score that is old, of other bins or denies all belief."""
        scored = self._scored.get(job) or self._begin(job, score)
        refiner = scored.refiner
        generated = min(score.generated, refiner.max_tokens)
        alike = (len(score.probabilities), score.span_tokens) == (len(refiner.belief), scored.span_tokens)
        if not alike or generated <= refiner.generated or not refiner.update(generated, score.probabilities):
            return False
        tokens = [generated + refiner.quantile(level) for level in LEVELS]
        job.forecast = Forecast.made(tokens, refiner.max_tokens, scored.first.score, least=generated)
        return True

    def _begin(self, job: TrackedJob, score: LengthScore) -> _Scored:
        most = job.job.sampling.max_tokens
        said = job.forecast if self._informed else Prediction.ignorant(most)
        refiner = Refiner(said, most, len(score.probabilities), span_tokens=score.span_tokens)
        scored = self._scored[job] = _Scored(job.forecast, refiner, score.span_tokens)
        return scored
