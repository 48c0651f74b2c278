"""Workers that vanish during a simulated run and come back: when and which is drawn by the seed, the same for every policy."""

from __future__ import annotations

import random
from collections.abc import Sequence

from packhorse.errors import ConfigError
from scheduler.simulator import Failure


def draw_failures(workers: Sequence[str], count: int, down_seconds: float, until: float, seed: int) -> list[Failure]:
    """`count` failures at even chances over 0 to `until` seconds and over `workers`; each is back after `down_seconds`.

    A worker that is down does not fail again before it is back. Raises ConfigError where so many do not fit.
    """
    rng, failures = random.Random(f"failures/{seed}"), list[Failure]()
    down: dict[str, list[float]] = {worker: [] for worker in workers}
    for _ in range(count):
        worker, at = _draw(rng, down, down_seconds, until)
        down[worker].append(at)
        failures.append(Failure(worker, at, at + down_seconds))
    return sorted(failures, key=lambda failure: failure.at)


def _draw(
    rng: random.Random, down: dict[str, list[float]], down_seconds: float, until: float, tries: int = 1000
) -> tuple[str, float]:
    for _ in range(tries):
        worker, at = rng.choice(list(down)), rng.uniform(0.0, until)
        if all(abs(at - other) > down_seconds for other in down[worker]):
            return worker, at
    placed = sum(map(len, down.values()))
    raise ConfigError(
        f"failures: after {placed} of {down_seconds:g} s each, no place for another on {len(down)} workers within {until:.0f} s",
        param="failures",
    )
