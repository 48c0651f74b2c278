"""The workload: how long prompts and outputs are, together, and how many requests come per second.

Lengths are a sample of (prompt, output) pairs: of a trace, or drawn without chance from given means and percentiles, as log-normal
lengths where there are two figures and as one length where there is one. Knows nothing of models or machines.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import NormalDist
from typing import Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from packhorse.errors import ConfigError

from .trace import MAX_TOKENS, SUFFIXES, read_trace
from .yaml_file import read_model

MAX_TRACE_ROWS = 20_000
SAMPLES = 1024
_GOLDEN = (math.sqrt(5) - 1) / 2  # spreads the pairing of prompts and outputs evenly
Lengths = NDArray[np.float64]


class LengthsEntry(BaseModel):
    """Tokens: one or two figures. Of three, p50 and the highest percentile count."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    mean: float | None = Field(default=None, ge=1, le=MAX_TOKENS)
    p50: float | None = Field(default=None, ge=1, le=MAX_TOKENS)
    p90: float | None = Field(default=None, ge=1, le=MAX_TOKENS)
    p95: float | None = Field(default=None, ge=1, le=MAX_TOKENS)
    p99: float | None = Field(default=None, ge=1, le=MAX_TOKENS)
    max: int | None = Field(default=None, ge=1, le=MAX_TOKENS, description="longer ones are cut to this")

    @model_validator(mode="after")
    def _solvable(self) -> Self:
        self.log_normal()
        return self

    def log_normal(self) -> tuple[float, float]:
        """(mu, sigma) of the logarithm; sigma 0 for one figure. Raises ValueError for figures that no log-normal has."""
        tails = [(p / 100, getattr(self, f"p{p}")) for p in (99, 95, 90) if getattr(self, f"p{p}") is not None]
        z, tail = (NormalDist().inv_cdf(tails[0][0]), tails[0][1]) if tails else (0.0, 0.0)
        if self.p50 is not None and tails:
            return math.log(self.p50), _spread(math.log(tail / self.p50) / z, f"p50={self.p50:g} and {tail:g} above it")
        if self.p50 is not None and self.mean is not None:
            square = 2 * math.log(self.mean / self.p50)
            return math.log(self.p50), math.sqrt(_spread(square, f"mean={self.mean:g} and p50={self.p50:g}"))
        if self.mean is not None and tails:
            under_root = z * z - 2 * math.log(tail / self.mean)
            what = f"mean={self.mean:g} and p{tails[0][0] * 100:.0f}={tail:g}"
            sigma = _spread(z - math.sqrt(_spread(under_root, what)), what)
            return math.log(self.mean) - sigma * sigma / 2, sigma
        given = self.p50 or self.mean or tail
        if not given:
            raise ValueError("needs one or two of mean, p50, p90, p95, p99")
        return math.log(given), 0.0


class WorkloadFile(BaseModel):
    """A YAML workload: prompt_tokens, output_tokens, and requests_per_second."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    prompt_tokens: LengthsEntry
    output_tokens: LengthsEntry
    requests_per_second: float | None = Field(default=None, gt=0)


@dataclass(frozen=True, eq=False)
class Workload:
    """`prompts` and `outputs` [samples] in tokens, pair by pair; `rate` in requests per second, None where it is not known."""

    name: str
    prompts: Lengths
    outputs: Lengths
    rate: float | None = None

    def describe(self) -> str:
        def lengths(values: Lengths) -> str:
            p50, p95 = np.quantile(values, (0.5, 0.95))
            return f"mean {values.mean():.0f}, p50 {p50:.0f}, p95 {p95:.0f}, max {values.max():.0f}"

        rate = f"{self.rate:.2f} requests/s" if self.rate else "rate not given"
        return f"{self.name}: prompt {lengths(self.prompts)}; output {lengths(self.outputs)} tokens; {rate}"


def load_workload(text: str, rate: float | None = None) -> Workload:
    """The workload called `text`: a trace, a YAML file, or PROMPT:OUTPUT in tokens such as 1024:256. `rate` wins over the file's.

    Raises ConfigError that names the file and the field or line.
    """
    lengths = re.fullmatch(r"(\d+):(\d+)", text)
    path = Path(text)
    if lengths:
        prompt, output = (float(number) for number in lengths.groups())
        if not (1 <= prompt <= MAX_TOKENS and 1 <= output <= MAX_TOKENS):
            raise ConfigError(f"workload {text!r}: both lengths must be from 1 to {MAX_TOKENS:,}", param="workload")
        found = Workload(text, np.array([prompt]), np.array([output]))
    elif path.name.endswith((".yaml", ".yml")):
        found = _from_figures(path.stem, read_model(path, WorkloadFile))
    elif path.name.endswith(SUFFIXES):
        found = _from_trace(path)
    else:
        allowed = f"a file ({', '.join(SUFFIXES)}, .yaml) or PROMPT:OUTPUT in tokens, such as 1024:256"
        raise ConfigError(f"workload {text!r} is not {allowed}", param="workload")
    return replace(found, rate=rate) if rate else found


def _from_figures(name: str, given: WorkloadFile) -> Workload:
    ranks = (np.arange(SAMPLES) + 0.5) / SAMPLES
    paired: Lengths = np.asarray((np.arange(SAMPLES) * _GOLDEN + 0.5 / SAMPLES) % 1.0, dtype=np.float64)
    outputs = _quantiles(given.output_tokens, paired)
    return Workload(name, _quantiles(given.prompt_tokens, ranks), outputs, given.requests_per_second)


def _quantiles(entry: LengthsEntry, shares: Lengths) -> Lengths:
    mu, sigma = entry.log_normal()
    normal = NormalDist()
    tokens = np.array([math.exp(mu + sigma * normal.inv_cdf(float(share))) for share in shares])
    return np.clip(np.round(tokens), 1, entry.max or np.inf)


def _from_trace(path: Path) -> Workload:
    rows = read_trace(path, MAX_TRACE_ROWS)
    prompts, outputs = (np.array(column, dtype=np.float64) for column in list(zip(*rows, strict=True))[:2])
    times = [seconds for _, _, seconds in rows if seconds is not None]
    span = max(times) - min(times) if times else 0.0
    return Workload(path.name, prompts, outputs, (len(times) - 1) / span if span > 0 else None)


def _spread(value: float, what: str) -> float:
    if value < 0:
        raise ValueError(f"no log-normal distribution has {what}")
    return value
