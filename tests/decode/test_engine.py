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
from transport.messages import ToolPause

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


@pytest.mark.parametrize("after_tokens", [2, 20, 39])
async def test_a_declared_pause_stops_a_sequence_and_changes_no_token(bench: Bench, after_tokens: int) -> None:
    declared = make_job("a", PROMPT).model_copy(update={"tool_pause": ToolPause(after_tokens=after_tokens, seconds=1)})
    sequence = sequence_of(bench.pool, declared)
    bench.engine.add(sequence)
    before = await bench.tokens("a", after_tokens - 1)  # token 1 is not the engine's
    bench.engine.add(sequence_of(bench.pool, make_job("b", PROMPT)))
    await bench.tokens("b")  # steps go on
    assert bench.paused == ["a"]
    assert await bench.tokens("a", after_tokens - 1) == before
    assert len(before) == after_tokens - 1
    bench.engine.add(sequence)
    assert await bench.tokens("a") == by_hand({})
    assert bench.paused == ["a"]


async def test_a_sequence_that_ends_with_the_token_of_its_pause_does_not_pause(bench: Bench) -> None:
    declared = make_job("a", PROMPT).model_copy(update={"tool_pause": ToolPause(after_tokens=40, seconds=1)})
    bench.engine.add(sequence_of(bench.pool, declared))
    assert len(await bench.tokens("a")) == 39
    assert bench.paused == []
