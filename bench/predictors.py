"""How well output lengths are predicted: on prompts held out, online from cold, on prompts that come back, and how fast.

The data are prompts with the lengths that a real model answered at (JSONL with `prompt` and `output_tokens`). This file prints nothing.
"""

from __future__ import annotations

import gzip
import json
import os
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import kendalltau

from bench.machine import describe_machine
from packhorse.errors import ConfigError
from scheduler.forecast import Forecast
from scheduler.planner.trace import MAX_TOKENS
from scheduler.predictor import PREDICTORS, JobFeatures, Prediction, Predictor, Refiner, make_predictor
from scheduler.predictor.base import LEARN_BATCH
from scheduler.predictor.features import text_ids
from scheduler.predictor.learned import Learned
from scheduler.predictor.store import CAPACITY

DATA_VARIABLE = "PACKHORSE_DATA"
DEFAULT_FILE = "lengths/vicuna7b_alpaca_train.jsonl.gz"
NAMES = ("percentile", "regressor", "rank", "retrieval", "learned", "oracle")
PARTS = ("held_out", "online", "refine", "speed")
FOLDS = 5
LEAST_PROMPTS = 2 * FOLDS  # two of each fold, or there is no order to compare
WINDOWS = ((0, 250), (250, 1000), (1000, 2500), (2500, 5000), (5000, 10_000))
REFINE_AT = (32, 64, 128, 256)
CLOSE = 0.25

Column = npt.NDArray[np.int64]


@dataclass(frozen=True)
class PredictorOptions:
    """`folds` of the five are run. `column` names the lengths in the file, `again` those of the prompts' second coming."""

    data: Path | None = None
    predictors: tuple[str, ...] = NAMES
    column: str = "t0.0"
    again: str = "t0.3"
    tokens: str = "model"
    max_tokens: int = 512
    folds: int = 3
    seed: int = 0
    stored: int = CAPACITY
    parts: tuple[str, ...] = PARTS

    def __post_init__(self) -> None:
        for field, known in (("predictors", PREDICTORS), ("parts", PARTS), ("tokens", ("model", "words"))):
            value = getattr(self, field)
            for name in (value,) if isinstance(value, str) else value:
                if name not in known:
                    raise ConfigError(f"{field}={name!r} is not one of {', '.join(known)}", param=field)
        if not 1 <= self.folds <= FOLDS:
            raise ConfigError(f"folds={self.folds} is not between 1 and {FOLDS}", param="folds")
        if self.seed < 0:
            raise ConfigError(f"seed={self.seed} is negative", param="seed")


@dataclass(frozen=True)
class LengthData:
    """Prompts in order of arrival, without duplicates, with their lengths and those of a second answer."""

    jobs: list[JobFeatures]
    lengths: Column
    again: Column


def run_predictors(options: PredictorOptions) -> dict[str, Any]:
    """Everything of `options.parts`, as JSON holds it."""
    data = read_lengths(options)
    started = time.perf_counter()
    result: dict[str, Any] = {"machine": describe_machine(), "jobs": len(data.jobs), "column": options.column,
                              "again": options.again, "tokens": options.tokens, "folds": options.folds, "seed": options.seed}  # fmt: skip
    if "held_out" in options.parts:
        result["held_out"] = [held_out(name, data, options) for name in options.predictors]
    if "online" in options.parts:
        result["online"] = [online(name, data, options) for name in options.predictors if name != "oracle"]
    if "refine" in options.parts:
        result["refine"] = refine(data, options)
    if "speed" in options.parts:
        result["speed"] = speed(data, options)
    return {**result, "seconds": time.perf_counter() - started}


def read_lengths(options: PredictorOptions) -> LengthData:
    """Raises ConfigError where the file is missing or lacks a column."""
    path = options.data or Path(os.environ.get(DATA_VARIABLE, "")) / DEFAULT_FILE
    try:
        raw = path.read_bytes()
        text = (gzip.decompress(raw) if path.name.endswith(".gz") else raw).decode("utf-8")
        rows = [json.loads(line) for line in text.split("\n") if line]
        for number, row in enumerate(rows, start=1):
            _check_row(number, row, options)
        kept = {row["prompt"]: row["output_tokens"] for row in reversed(rows)}  # the first of equal prompts
        prompts = list(dict.fromkeys(row["prompt"] for row in rows))
        columns = [[kept[prompt][name] for prompt in prompts] for name in (options.column, options.again)]
    except (OSError, EOFError, zlib.error) as error:
        raise ConfigError(
            f"data={path}: {getattr(error, 'strerror', None) or error}; set {DATA_VARIABLE} or --data", param="data"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        needs = f"needs prompt and output_tokens with {options.column} and {options.again} in every line"
        raise ConfigError(f"data={path}: {needs} ({error!r})", param="data") from error
    if len(prompts) < LEAST_PROMPTS:
        raise ConfigError(
            f"data={path}: {len(prompts)} different prompts; at least {LEAST_PROMPTS} are needed", param="data"
        )
    ids = _encoder(options.tokens)
    lengths, again = (np.array(column, np.int64) for column in columns)
    jobs = [
        JobFeatures(ids(prompt), options.max_tokens, text=prompt, actual_tokens=int(n))
        for prompt, n in zip(prompts, lengths, strict=True)
    ]
    return LengthData(jobs, lengths, again)


def _check_row(number: int, row: Any, options: PredictorOptions) -> None:
    """Raises ValueError, KeyError or TypeError, as what is missing does."""
    prompt, lengths = row["prompt"], row["output_tokens"]
    if not isinstance(prompt, str):
        raise ValueError(f"request {number}: prompt={prompt!r} is no text")
    for name in (options.column, options.again):
        value = lengths[name]
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_TOKENS:
            raise ValueError(f"request {number}: {name}={value!r} is no number of tokens")


def _encoder(tokens: str) -> Any:
    if tokens == "words":
        return text_ids
    from model.text import load_tokenizer

    encode = load_tokenizer("embedded").encode
    return lambda text: tuple(encode(text))


def held_out(name: str, data: LengthData, options: PredictorOptions) -> dict[str, Any]:
    """Learns four fifths of the prompts as they arrived, predicts the rest; then the learned ones, as if they came again."""
    folds, seen = [], []
    chance = np.random.default_rng(options.seed).permutation(len(data.jobs))
    for part in np.array_split(chance, FOLDS)[: options.folds]:
        train = np.setdiff1d(chance, part)  # ascending: in order of arrival
        predictor = make_predictor(name, options.seed)
        for number in train:
            predictor.observe(data.jobs[number], int(data.lengths[number]))
        predictor.learn()
        folds.append(scores([predictor.predict(data.jobs[n]) for n in part], data.lengths[part]))
        back = np.random.default_rng(options.seed).choice(train, min(1000, len(train)), replace=False)
        seen.append(scores([predictor.predict(data.jobs[n]) for n in back], data.again[back]))
    spread = max(fold["tau"] for fold in folds) - min(fold["tau"] for fold in folds)
    return {"predictor": name, **_mean(folds), "tau_range": spread, "seen_before": _mean(seen)}


def online(name: str, data: LengthData, options: PredictorOptions) -> dict[str, Any]:
    """From nothing, in order of arrival: every job is predicted first, and learned from with the next LEARN_BATCH at most."""
    predictor = make_predictor(name, options.seed)
    said: list[Prediction] = []
    for job, length in zip(data.jobs, data.lengths.tolist(), strict=True):
        said.append(predictor.predict(job))
        predictor.observe(job, length)
        if predictor.pending == LEARN_BATCH:
            predictor.learn()
    windows = [(a, min(b, len(said))) for a, b in WINDOWS if a + 2 <= len(said)]
    return {
        "predictor": name,
        "windows": [{"from": a, "to": b, **scores(said[a:b], data.lengths[a:b])} for a, b in windows],
    }


def scores(said: Sequence[Prediction], actual: Column) -> dict[str, float]:
    """Of the medians MAE and the share within 25 %, of the scores Kendall's tau (0 where all are equal), of p10 to p90 the cover."""
    median = np.array([p.p50 for p in said])
    tau = kendalltau([-p.score for p in said], actual).statistic if len({p.score for p in said}) > 1 else 0.0
    return {
        "mae": float(np.abs(median - actual).mean()),
        "within_25": float((np.abs(median - actual) <= CLOSE * actual).mean()),
        "tau": float(tau),
        "cover_p10_p90": float(np.mean([p.p10 <= n <= p.p90 for p, n in zip(said, actual.tolist(), strict=True)])),
    }


def refine(data: LengthData, options: PredictorOptions) -> list[dict[str, float]]:
    """MAE of the tokens that remain, of jobs still running after so many: by the first prediction alone, and refined."""
    split = len(data.jobs) * (FOLDS - 1) // FOLDS
    predictor = make_predictor("learned", options.seed)
    for job, length in zip(data.jobs[:split], data.lengths[:split].tolist(), strict=True):
        predictor.observe(job, length)
    predictor.learn()
    said = [predictor.predict(job) for job in data.jobs[split:]]
    return [_refined(generated, said, data.lengths[split:].tolist(), options.max_tokens) for generated in REFINE_AT]


def _refined(generated: int, said: Sequence[Prediction], lengths: Sequence[int], max_tokens: int) -> dict[str, float]:
    errors: dict[str, list[float]] = {"first": [], "conditioned": [], "refined": [], "survival": []}
    for prediction, length in zip(said, lengths, strict=True):
        if length <= generated:
            continue
        said_now = {
            "first": max(prediction.p50 - generated, 1.0),
            "conditioned": Forecast.of(prediction, max_tokens).remaining(0.5, generated),
            "refined": _median_after(generated, Refiner(prediction, max_tokens)),
            "survival": _median_after(generated, Refiner(prediction, max_tokens, survival=True)),
        }
        for name, tokens in said_now.items():
            errors[name].append(abs(tokens - (length - generated)))
    means = {name: float(np.mean(values)) if values else 0.0 for name, values in errors.items()}
    return {"generated": generated, "jobs": len(errors["first"]), **means}


def _median_after(generated: int, belief: Refiner) -> float:
    belief.update(generated)
    return belief.quantile(0.5)


def speed(data: LengthData, options: PredictorOptions, count: int = 2000) -> dict[str, float]:
    """Milliseconds of one prediction by `learned` with `stored` prompts, by the clock and of processor time.

    The prompts of the data are learned; noisy copies of their vectors fill the store, which costs the search the same.
    """
    predictor = Learned(options.seed, options.stored)
    count = min(count, len(data.jobs))
    started = time.perf_counter()
    for job, length in zip(data.jobs, data.lengths.tolist(), strict=True):
        predictor.observe(job, length)
    predictor.learn()
    learn = (time.perf_counter() - started) / len(data.jobs)
    _fill(predictor, data, options)
    wall, processor = _timed(predictor, data.jobs[-count:])
    return {
        "stored": len(predictor.store), "learn_ms": 1000 * learn, "predictions": count,
        **{f"p{q}_ms": float(np.percentile(wall, q)) for q in (50, 99)},
        **{f"p{q}_processor_ms": float(np.percentile(processor, q)) for q in (50, 99)},
    }  # fmt: skip


def _fill(predictor: Learned, data: LengthData, options: PredictorOptions) -> None:
    rng = np.random.default_rng(options.seed)
    rows = predictor.regressor.row
    vectors = np.concatenate([predictor.vectors([job], rows(job)) for job in data.jobs])
    logs = np.log(np.maximum(data.lengths, 1))
    while len(predictor.store) < options.stored:
        noise = rng.standard_normal(vectors.shape).astype(np.float32) * np.float32(0.5 / np.sqrt(vectors.shape[1]))
        room = options.stored - len(predictor.store)
        for start in range(0, min(len(vectors), room), 1000):
            stop = min(start + 1000, room)
            predictor.store.add((vectors + noise)[start:stop], logs[start:stop])


def _timed(predictor: Predictor, jobs: Sequence[JobFeatures]) -> tuple[list[float], list[float]]:
    wall, processor = [], []
    for job in jobs:
        clock, cpu = time.perf_counter(), time.thread_time()
        predictor.predict(job)
        processor.append(1000 * (time.thread_time() - cpu))
        wall.append(1000 * (time.perf_counter() - clock))
    return wall, processor


def _mean(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    return {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}
