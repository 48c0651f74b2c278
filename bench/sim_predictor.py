"""Predictors for simulations: made by name, and taught the requests of the data set that the simulation does not use."""

from __future__ import annotations

from bench.sim_workloads import Source
from scheduler.predictor import JobFeatures, Predictor, make_predictor
from scheduler.predictor.base import QUEUE_JOBS

NO_LESSONS = ("none", "oracle")
MOST_LESSONS = 8000


def warm_predictor(name: str, source: Source, count: int, seed: int, *, in_order: bool = False) -> Predictor | None:
    """The predictor as it would be after serving the rest of the data set, at most MOST_LESSONS of it; None for `none`.

    Where `draw(count, seed)` takes every request, nothing is left to learn from: it starts cold. Raises ConfigError for an unknown name.
    """
    if name == "none":
        return None
    predictor = make_predictor(name, seed)
    if name in NO_LESSONS:
        return predictor
    for index in source.rest(count, seed, in_order=in_order)[:MOST_LESSONS]:
        prompt = source.prompts[index] if source.prompts else ()
        features = JobFeatures(prompt, source.max_tokens, source.prompt_tokens[index])
        predictor.observe(features, source.output_tokens[index])
        if predictor.pending >= QUEUE_JOBS // 2:
            predictor.learn()
    predictor.learn()
    return predictor
