"""What the engine makes of a sequence depends on the sequence alone."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from decode.batch import DecodeBatch
from decode.pool import PagePool
from model.sampler import sample
from tests.decode.fakes import Bench, TinyModel, make_job, sequence_of
from tests.shapes import FORMAT, INFO

PROMPT = range(1, 131)


@pytest_asyncio.fixture
async def bench(no_tasks: None) -> AsyncIterator[Bench]:
    bench = Bench(PagePool(INFO, FORMAT, num_slots=16, max_jobs=4))
    yield bench
    await bench.engine.stop(10.0)
    assert bench.failed == []


def by_hand(sampling: dict[str, Any]) -> list[int]:
    """The tokens of PROMPT, one step after the other."""
    pool, model = PagePool(INFO, FORMAT, num_slots=16, max_jobs=4), TinyModel()
    sequence = sequence_of(pool, make_job("x", PROMPT, **sampling))
    tokens: list[int] = []
    for _ in range(sequence.job.sampling.max_tokens - 1):
        batch = DecodeBatch(pool, [sequence])
        (sampled,) = sample(model.forward(batch.tokens, batch.positions, batch, batch.logits_at), [sequence.sampler])
        sequence.sampler.record(sampled.token_id)
        sequence.last_token, sequence.num_tokens = sampled.token_id, sequence.num_tokens + 1
        tokens.append(sampled.token_id)
    return tokens


@pytest.mark.parametrize(
    "sampling",
    [{}, {"temperature": 0.0, "frequency_penalty": 1.5}, {"repetition_penalty": 1.5, "top_p": 0.9}],
    ids=["drawn", "penalized", "both"],
)
async def test_each_token_counts_for_those_after_it(bench: Bench, sampling: dict[str, Any]) -> None:
    for name in ("a", "b"):
        bench.engine.add(sequence_of(bench.pool, make_job(name, PROMPT, **sampling)))
    expected = by_hand(sampling)
    assert await bench.tokens("a") == expected
    assert await bench.tokens("b") == expected
    assert len(set(expected)) > 10
