"""Requests for the simulator: lengths of traces and prompt sets, or a built-in mix, and when they arrive.

Named data sets are looked up under PACKHORSE_DATA; none of them is needed for `synthetic`. Knows nothing of clusters or schedulers.
"""

from __future__ import annotations

import os
import random
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from bench.arrivals import renewal_arrivals
from bench.datasets import HASH_BLOCK_TOKENS, PROMPT_KEYS, RequestBuilder, load_dataset
from bench.trace_blocks import Blocks, numbered, read_blocks
from packhorse.errors import ConfigError
from scheduler.planner.trace import read_trace
from scheduler.predictor.features import text_ids
from scheduler.simulator import BlockPrompt, Workload

DATA_VARIABLE = "PACKHORSE_DATA"
NAMED = {
    "alpaca": "lengths/vicuna7b_alpaca_train.jsonl.gz",  # responses of Vicuna-7B at temperature 0
    "azure-conv": "traces/azure2023_conv_first_half.csv",
    "azure-code": "traces/azure2023_code.csv",
    "mooncake": "traces/mooncake_synthetic_trace.jsonl.gz",
    "arxiv": "traces/vidur_arxiv_summarization_lengths.csv",
}
SYNTHETIC = "synthetic"
# (share, median prompt, sigma, median output, sigma) of log-normal lengths: chat, summaries, long answers. Ours.
_MIX = ((0.6, 200, 1.0, 120, 0.8), (0.25, 2000, 0.6, 80, 0.7), (0.15, 100, 0.8, 600, 0.6))
_MIX_REQUESTS, _MIX_PROMPT, _MIX_OUTPUT = 10_000, 8192, 2048
_MAX_ROWS = 1_000_000
Column = TypeVar("Column")


@dataclass(frozen=True)
class Source:
    """All requests of a data set. `max_tokens` is what every client asks for: the least power of two that covers all outputs.

    In the order of the file; where all have times, in theirs.

    `prompts` are token ids, where the set has texts; `times` seconds, where it has any. `blocks`: where the set says which prompts begin
    alike, the ids of each one's blocks of HASH_BLOCK_TOKENS tokens, 0 to `num_blocks` - 1, equal for equal text.
    """

    name: str
    prompt_tokens: list[int]
    output_tokens: list[int]
    max_tokens: int
    prompts: list[tuple[int, ...]]
    times: list[float]
    blocks: list[Blocks] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.prompt_tokens)

    @classmethod
    def of(
        cls,
        name: str,
        prompt_tokens: list[int],
        output_tokens: list[int],
        prompts: Sequence[tuple[int, ...]] = (),
        times: Sequence[float] = (),
        blocks: Sequence[Blocks] = (),
    ) -> Source:
        order: Sequence[int] = range(len(prompt_tokens))
        if times:
            order = sorted(order, key=times.__getitem__)

        def ordered(column: Sequence[Column]) -> list[Column]:
            return [column[i] for i in order] if column else []

        lengths = ordered(prompt_tokens), ordered(output_tokens), covering(max(output_tokens))
        return cls(name, *lengths, ordered(prompts), ordered(times), ordered(blocks))

    @cached_property
    def num_blocks(self) -> int:
        return 1 + max((block for blocks in self.blocks for block in blocks), default=-1)

    def prompt(self, index: int, longest: int | None = None, turn: int = 0) -> Sequence[int]:
        """Token ids of a request's prompt, cut to `longest`; without text a stand-in of its length.

        One that is made of blocks is like others of the same `turn` through the data set alone.
        """
        length = min(self.prompt_tokens[index], longest or self.prompt_tokens[index])
        if self.blocks:
            blocks = tuple(turn * self.num_blocks + block for block in self.blocks[index])
            return BlockPrompt(blocks, length, HASH_BLOCK_TOKENS)
        return self.prompts[index][:length] if self.prompts else range(length)

    def draw(
        self, count: int, seed: int, max_context_tokens: int, *, in_order: bool = False
    ) -> tuple[Workload, list[float]]:
        """`count` requests and their own times: at random, in several turns where there are fewer; or consecutive ones.

        Prompts are cut to what leaves room for max_tokens in the context. Raises ConfigError where that is nothing.
        """
        longest = max_context_tokens - self.max_tokens
        if longest < 1:
            raise ConfigError(
                f"workload {self.name}: max_tokens {self.max_tokens} fill the context of {max_context_tokens}"
            )
        chosen = self._consecutive(count, seed) if in_order else self._random(count, seed)
        known = self.prompts or self.blocks
        load = Workload(
            self.name,
            [min(self.prompt_tokens[i], longest) for i in chosen],
            [self.output_tokens[i] for i in chosen],
            [self.max_tokens] * count,
            prompts=[self.prompt(i, longest, place // len(self)) for place, i in enumerate(chosen)] if known else (),
            share_prefixes=bool(self.blocks),
        )
        return load, [self.times[i] for i in chosen] if self.times else []

    def rest(self, count: int, seed: int, *, in_order: bool = False) -> list[int]:
        """The requests that `draw` leaves, for predictors to learn from beforehand."""
        drawn = set(self._consecutive(count, seed) if in_order else self._random(count, seed))
        return [index for index in range(len(self)) if index not in drawn]

    def _random(self, count: int, seed: int) -> list[int]:
        rng = random.Random(f"{self.name}/{seed}")
        chosen: list[int] = []
        while len(chosen) < count:
            chosen += rng.sample(range(len(self)), min(count - len(chosen), len(self)))
        return chosen

    def _consecutive(self, count: int, seed: int) -> list[int]:
        if count > len(self):
            raise ConfigError(f"workload {self.name} has {len(self)} requests; in their own order there are no {count}")
        start = random.Random(f"{self.name}/{seed}").randint(0, len(self) - count)
        return list(range(start, start + count))


def covering(tokens: int) -> int:
    """The least power of two that is not below `tokens`."""
    return 1 << (tokens - 1).bit_length()


def find_source(name: str) -> Source:
    """The data set of this name, or in the file at that path. Raises ConfigError that says what is missing."""
    if name == SYNTHETIC:
        return _synthetic()
    if name in NAMED:
        folder = os.environ.get(DATA_VARIABLE)
        if not folder:
            raise ConfigError(
                f"workload {name} needs {DATA_VARIABLE}, the folder that holds {NAMED[name]}", param="workload"
            )
        return _read(name, Path(folder) / NAMED[name])
    path = Path(name)
    if not path.suffix:
        raise ConfigError(
            f"workload={name!r} is no file and not one of {SYNTHETIC}, {', '.join(NAMED)}", param="workload"
        )
    return _read(path.name, path)


def _read(name: str, path: Path) -> Source:
    if _first_line_has(path, PROMPT_KEYS):
        requests = load_dataset(path, _MAX_ROWS, RequestBuilder(seed=0))
        prompts = [text_ids(request.prompt) or (0,) for request in requests]
        return Source.of(
            name,
            [len(prompt) for prompt in prompts],
            [request.max_tokens for request in requests],
            prompts,
            times=_if_all([request.arrival_seconds for request in requests]),
        )
    rows = read_trace(path, _MAX_ROWS)
    return Source.of(
        name,
        [row[0] for row in rows],
        [row[1] for row in rows],
        times=_if_all([row[2] for row in rows]),
        blocks=numbered(list(read_blocks(path))) if _first_line_has(path, ("hash_ids",)) else (),
    )


def _if_all(times: Sequence[float | None]) -> list[float]:
    """The times, where none is missing."""
    known = [time for time in times if time is not None]
    return known if len(known) == len(times) else []


def _first_line_has(path: Path, keys: Sequence[str]) -> bool:
    """Whether the first line of a JSONL file has one of these."""
    if not path.name.removesuffix(".gz").endswith(".jsonl"):
        return False
    import gzip

    try:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
            first = file.readline()
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {getattr(error, 'strerror', None) or error}", param="workload") from error
    return any(f'"{key}"' in first for key in keys)


def _synthetic() -> Source:
    """A seeded mix of three kinds of requests, always the same."""
    rng = random.Random("packhorse synthetic")
    shares = [row[0] for row in _MIX]
    prompts, outputs = [], []
    for _ in range(_MIX_REQUESTS):
        _, prompt, prompt_sigma, output, output_sigma = rng.choices(_MIX, shares)[0]
        prompts.append(_log_normal(rng, prompt, prompt_sigma, _MIX_PROMPT))
        outputs.append(_log_normal(rng, output, output_sigma, _MIX_OUTPUT))
    return Source.of(SYNTHETIC, prompts, outputs)


def _log_normal(rng: random.Random, median: float, sigma: float, most: int) -> int:
    return max(1, min(most, round(median * rng.lognormvariate(0, sigma))))


def poisson_times(count: int, rate: float, seed: int) -> list[float]:
    """Arrival times of a Poisson process; the first is 0."""
    return renewal_arrivals(count, rate, 1.0, seed)


def own_times(times: Sequence[float], rate: float) -> list[float]:
    """A trace's own ascending times, stretched to a mean rate. Raises ConfigError where there are none, or all are the same."""
    if not times:
        raise ConfigError("arrivals=trace needs a workload with times", param="arrivals")
    span = times[-1] - times[0]
    if len(times) > 1 and not span > 0:
        raise ConfigError(
            f"arrivals=trace: the {len(times)} requests drawn all come at one time, which no rate stretches",
            param="arrivals",
        )
    return [(time - times[0]) * (len(times) - 1) / rate / span if span else 0.0 for time in times]
