"""What a length probe is worth on outputs that it was not trained on: errors of what remains, beside predictions from the prompt."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from scipy.stats import kendalltau
from torch import Tensor

from bench.probe_outputs import BATCH, Output
from decode.scores import SCORE_EVERY
from model.length_probe import LengthProbe
from packhorse.errors import ConfigError
from scheduler.forecast import Forecast
from scheduler.predictor import JobFeatures, Prediction, Refiner, make_predictor

PREDICTORS = ("percentile", "learned")
LEAST_JOBS = 3  # for a line of the table
AT = (8, 16, 32, 64, 96, 128, 192)  # tokens generated, at which errors are told


def evaluate(
    probe: LengthProbe, outputs: Sequence[Output], known: Sequence[Output], seed: int
) -> list[dict[str, float]]:
    """Of outputs that still run after so many tokens: MAE of what remains, and Kendall's tau with it, by each estimate."""
    said: dict[int, list[tuple[int, dict[str, float]]]] = defaultdict(list)
    for output, predictions in zip(outputs, predict(outputs, known, probe.span_tokens, seed), strict=True):
        for generated, estimates in follow(probe, output, predictions):
            if generated in AT:
                said[generated].append((output.tokens - generated, estimates))
    rows = [_row(generated, said[generated]) for generated in AT if len(said[generated]) >= LEAST_JOBS]
    if not rows:
        raise ConfigError(
            f"of {len(outputs)} outputs fewer than {LEAST_JOBS} have more than {AT[0]} tokens", param="prompts"
        )
    return rows


def predict(
    outputs: Sequence[Output], known: Sequence[Output], span_tokens: int, seed: int
) -> list[dict[str, Prediction]]:
    """By each of PREDICTORS, from the prompt, after learning from the `known` outputs."""
    predictors = {name: make_predictor(name, seed) for name in PREDICTORS}
    for predictor in predictors.values():
        for output in known:
            predictor.observe(JobFeatures(output.prompt, span_tokens), output.tokens)
        predictor.learn()
    jobs = [JobFeatures(output.prompt, span_tokens) for output in outputs]
    return [{name: predictor.predict(job) for name, predictor in predictors.items()} for job in jobs]


def follow(
    probe: LengthProbe, output: Output, predictions: Mapping[str, Prediction]
) -> Iterator[tuple[int, dict[str, float]]]:
    """At every SCORE_EVERY-th token: how many have been generated, and the medians of what remains by each estimate."""
    span = probe.span_tokens
    refiners = {name: Refiner(said, span, probe.bins) for name, said in predictions.items()}
    for generated in range(SCORE_EVERY, output.tokens, SCORE_EVERY):
        score = probe(output.hidden[generated - 1 : generated])[0].tolist()
        alone = Refiner(Prediction.ignorant(span), span, probe.bins)
        alone.update(0, score)
        estimates = {"probe": alone.quantile(0.5)}
        for name, said in predictions.items():
            refiners[name].update(generated, score)
            estimates[name] = Forecast.of(said, span).remaining(0.5, generated)
            estimates[f"{name} + probe"] = refiners[name].quantile(0.5)
        yield generated, estimates


def _row(generated: int, said: Sequence[tuple[int, dict[str, float]]]) -> dict[str, float]:
    left = np.array([actual for actual, _ in said])
    row: dict[str, float] = {"generated": generated, "jobs": len(said)}
    for name in said[0][1]:
        column = np.array([estimates[name] for _, estimates in said])
        row[f"{name}: MAE"] = float(np.abs(column - left).mean())
        row[f"{name}: tau"] = float(kendalltau(column, left).statistic) if len(set(column)) > 1 else 0.0
    return row


def score_microseconds(probe: LengthProbe, hidden: Tensor, repeats: int = 200) -> float:
    """The median time of scoring a batch of BATCH states."""
    states = hidden[torch.arange(BATCH) % len(hidden)]
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        probe(states)
        times.append(time.perf_counter() - started)
    return 1e6 * float(np.median(times))
