"""What `packhorse bench scheduler` is asked for: the grid of cases and what all of them share."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import product

from packhorse.errors import ConfigError
from scheduler.pages import KV_FORMATS
from scheduler.placement import PLACEMENTS
from scheduler.policies import POLICIES
from scheduler.predictor import PREDICTORS
from scheduler.simulator import Slo

ALL = "all"
ARRIVALS = ("poisson", "trace")


@dataclass(frozen=True)
class Case:
    """One simulation, up to its seed. `load` is a fraction of saturation, None where the rate was given."""

    workload: str
    kv_format: str
    predictor: str
    placement: str
    policy: str
    load: float | None
    rate: float | None


@dataclass(frozen=True)
class SchedulerOptions:
    """Every combination of the tuples is simulated with seeds 0 to `seeds` - 1; `all` alone stands for every name there is.

    `frozen`: predictors do not learn from the requests of the run. `load_of` names the KV format whose saturation loads refer to;
    None: each case's own. `tool_pauses` is the share of the requests that declare one; saturation is measured without them.
    `prefix_cache`: decode workers keep the pages of prompts, where the workload says which begin alike; saturation is measured without.
    `failures` of a run's workers are drawn by its seed; each is silent for `failure_seconds`, then comes back empty.
    `named_devices`: workers name their GPUs, and the scheduler starts from the planner's figures of them.
    """

    workload: tuple[str, ...] = ("synthetic",)
    policy: tuple[str, ...] = ("fcfs",)
    predictor: tuple[str, ...] = ("none",)
    placement: tuple[str, ...] = ("least-loaded",)
    load: tuple[float, ...] = (0.9,)
    rate: tuple[float, ...] = ()
    requests: int = 2000
    seeds: int = 1
    kv_format: tuple[str, ...] = ("raw",)
    load_of: str | None = None
    cluster: str = "a100"
    max_batch: int | None = None
    arrivals: str = "poisson"
    frozen: bool = False
    tool_pauses: float = 0.0
    failures: int = 0
    failure_seconds: float = 30.0
    named_devices: bool = False
    prefix_cache: bool = True
    slo: Slo = field(default_factory=Slo)

    def __post_init__(self) -> None:
        known = {
            "policy": tuple(POLICIES),
            "placement": tuple(PLACEMENTS),
            "predictor": PREDICTORS,
            "kv_format": KV_FORMATS,
        }
        for name, allowed in known.items():
            if getattr(self, name) == (ALL,):
                object.__setattr__(self, name, allowed)
            for value in getattr(self, name):
                if value not in allowed:
                    raise ConfigError(f"{name}={value!r} is not one of {', '.join(allowed)}", param=name)
        if self.load_of is not None and self.load_of not in KV_FORMATS:
            raise ConfigError(f"load_of={self.load_of!r} is not one of {', '.join(KV_FORMATS)}", param="load_of")
        if self.arrivals not in ARRIVALS:
            raise ConfigError(f"arrivals={self.arrivals!r} is not one of {', '.join(ARRIVALS)}", param="arrivals")
        if not 0 <= self.tool_pauses <= 1:
            raise ConfigError(
                f"tool_pauses={self.tool_pauses} is no share of the requests, 0 to 1", param="tool_pauses"
            )
        if self.failures < 0:
            raise ConfigError(f"failures={self.failures} is negative", param="failures")
        for name in ("requests", "seeds", "max_batch", "load", "rate", "failure_seconds"):
            value = getattr(self, name)
            for number in value if isinstance(value, tuple) else (value,):
                if number is not None and not 0 < number < math.inf:
                    raise ConfigError(f"{name}={number} is not a positive, finite number", param=name)
        for name, seconds in (("slo_ttft", self.slo.ttft_seconds), ("slo_tpot", self.slo.tpot_seconds)):
            if not seconds > 0:
                raise ConfigError(f"{name}={seconds} is not a positive number", param=name)

    def cases(self) -> Iterator[Case]:
        rates: list[tuple[float | None, float | None]] = [(None, rate) for rate in self.rate]
        rates = rates or [(load, None) for load in self.load]
        axes = product(self.workload, self.kv_format, self.predictor, self.placement, rates, self.policy)
        for workload, kv_format, predictor, placement, (load, rate), policy in axes:
            yield Case(workload, kv_format, predictor, placement, policy, load, rate)
