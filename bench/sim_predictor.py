"""Predictors for simulations: made by name, and taught the requests of the data set that the simulation does not use."""

from __future__ import annotations

from bench.sim_workloads import Source
from scheduler.predictor import JobFeatures, make_predictor
from scheduler.predictor.base import QUEUE_JOBS
from scheduler.predictor.guard import Guarded
from scheduler.simulator import SimOracle

MOST_LESSONS = 8000


def warm_predictor(name: str, source: Source, count: int, seed: int, *, in_order: bool = False) -> Guarded | None:
    """The predictor as it would be after serving the rest of the data set, at most MOST_LESSONS of it; None for `none`.

    Where `draw(count, seed)` takes every request, nothing is left to learn from: it starts cold. Raises ConfigError for an unknown name.
    """
    if name == "none":
        return None
    if name == "oracle":
        return Guarded(SimOracle())
    predictor = make_predictor(name, seed)
    for index in source.rest(count, seed, in_order=in_order)[:MOST_LESSONS]:
        ids = source.prompts[index] if source.prompts else range(source.prompt_tokens[index])
        features = JobFeatures(ids, source.max_tokens, len(ids))
        predictor.observe(features, source.output_tokens[index])
        if predictor.pending >= QUEUE_JOBS // 2:
            predictor.learn()
    predictor.learn()
    return predictor
