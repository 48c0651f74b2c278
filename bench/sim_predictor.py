"""Predictors for simulations: made by name, and taught the requests of the data set that the simulation does not use."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from bench.sim_adversaries import made_up
from bench.sim_workloads import Source
from scheduler.predictor import JobFeatures, Prediction, Predictor, make_predictor
from scheduler.predictor.base import QUEUE_JOBS, Observation
from scheduler.predictor.guard import Guarded
from scheduler.simulator import SimOracle
from scheduler.simulator.prompts import SimPrompt

MOST_LESSONS = 8000


class Remembered(Predictor):
    """A predictor that has learned: asked again about a simulated request, it gives the same answer without work.

    So that simulations of the same requests under other policies need not predict anew.
    """

    def __init__(self, inner: Guarded) -> None:
        super().__init__()
        self._inner = inner
        self._said: dict[Hashable, Prediction] = {}

    @property
    def name(self) -> str:  # type: ignore[override]
        return self._inner.name

    def predict(self, job: JobFeatures) -> Prediction:
        assert isinstance(job.prompt, SimPrompt), "for simulated jobs"
        key = (job.prompt.ids, job.prompt.output_tokens, job.max_tokens)
        said = self._said.get(key)
        if said is None:
            said = self._said[key] = self._inner.predict(job)
        return said

    def learn_batch(self, batch: Sequence[Observation]) -> None:
        """It has learned."""


def warm_predictor(name: str, source: Source, count: int, seed: int, *, in_order: bool = False) -> Guarded | None:
    """The predictor as it would be after serving the rest of the data set, at most MOST_LESSONS of it; None for `none`.

    Where `draw(count, seed)` takes every request, nothing is left to learn from: it starts cold. Raises ConfigError for an unknown name.
    """
    if name == "none":
        return None
    if name == "oracle":
        return Guarded(SimOracle())
    invented = made_up(name, seed)
    predictor = Guarded(invented) if invented is not None else make_predictor(name, seed)
    for index in source.rest(count, seed, in_order=in_order)[:MOST_LESSONS]:
        ids = source.prompt(index)
        features = JobFeatures(ids, source.max_tokens, len(ids))
        predictor.observe(features, source.output_tokens[index])
        if predictor.pending >= QUEUE_JOBS // 2:
            predictor.learn()
    predictor.learn()
    return predictor
