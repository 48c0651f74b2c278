"""What a simulation is given: requests with their lengths, and when they arrive, are cancelled, and workers fail."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass, field

from packhorse.errors import ConfigError


@dataclass(frozen=True)
class Workload:
    """Columns of equal length. `output_tokens` is what only the simulated decode workers know; `max_tokens` is what clients ask for.

    `prompts` holds token ids where they are known, else prompts are stand-ins of the right length; `share_prefixes`: those that begin
    alike share pages. `pauses` are declared tool pauses: (tokens of output before it, seconds).
    """

    name: str
    prompt_tokens: Sequence[int]
    output_tokens: Sequence[int]
    max_tokens: Sequence[int]
    priorities: Sequence[int] = ()
    prompts: Sequence[Sequence[int]] = ()
    pauses: Sequence[tuple[int, float] | None] = ()
    share_prefixes: bool = False

    def __post_init__(self) -> None:
        sizes = {len(self.prompt_tokens), len(self.output_tokens), len(self.max_tokens)}
        sizes |= {len(column) for column in (self.priorities, self.prompts, self.pauses) if len(column)}
        if len(sizes) != 1 or 0 in sizes:
            raise ConfigError(f"workload {self.name}: columns of {sorted(sizes)} requests")
        if self.share_prefixes and not len(self.prompts):
            raise ConfigError(f"workload {self.name}: stand-ins for prompts share no prefixes")
        for index, (output, most) in enumerate(zip(self.output_tokens, self.max_tokens, strict=True)):
            if not 1 <= output <= most:
                raise ConfigError(f"workload {self.name}, request {index}: {output} output tokens, max_tokens {most}")
        if min(self.prompt_tokens) < 1:
            raise ConfigError(f"workload {self.name}: a prompt without tokens")

    def __len__(self) -> int:
        return len(self.prompt_tokens)


@dataclass(frozen=True)
class Failure:
    """A worker vanishes at `at` without a word; at `back_at` it registers again, empty. None: never."""

    worker_id: str
    at: float
    back_at: float | None = None


@dataclass(frozen=True)
class Arrivals:
    """Open loop: `times`, ascending, one per request. Closed loop: `concurrency` requests at any time, one after the other.

    `cancels` maps a request's index to when its client leaves.
    """

    times: Sequence[float] = ()
    concurrency: int = 0
    cancels: dict[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if bool(len(self.times)) == bool(self.concurrency):
            raise ConfigError("arrivals need either times or a concurrency")
        if not all(map(math.isfinite, self.times)) or any(map(operator.gt, self.times, self.times[1:])):
            raise ConfigError("the times of arrivals must be finite and ascending")
