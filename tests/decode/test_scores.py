"""Scores from hidden states: when they are due, that they change no token, and what heartbeats take of them."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_asyncio
import torch

from decode.pool import PagePool
from decode.scores import SCORE_EVERY, NewScores, Scorer
from model.length_probe import LengthProbe
from tests.decode.fakes import Bench, make_job, sequence_of
from tests.shapes import FORMAT, INFO
from transport.messages import MAX_SCORES, LengthScore

PROMPT = range(1, 31)
HIDDEN = INFO.heads * INFO.head_dim


def probe(scale: float = 1.0) -> LengthProbe:
    draw = torch.Generator().manual_seed(3)
    shapes = ((8, HIDDEN), (8,), (10, 8), (10,))
    return LengthProbe(*(scale * torch.randn(shape, generator=draw) for shape in shapes), span_tokens=256)


def make_bench(scorer: Scorer | None) -> Bench:
    return Bench(PagePool(INFO, FORMAT, num_slots=16, max_jobs=4), scorer)


@pytest_asyncio.fixture
async def bench(no_tasks: None) -> AsyncIterator[Bench]:
    bench = make_bench(Scorer(probe()))
    yield bench
    await bench.engine.stop(10.0)
    assert bench.failed == []


async def test_scores_come_every_so_many_tokens_and_change_no_token(bench: Bench) -> None:
    plain = make_bench(None)
    for each in (bench, plain):
        each.engine.add(sequence_of(each.pool, make_job("a", PROMPT)))
        each.engine.add(sequence_of(each.pool, make_job("b", PROMPT, seed=8, max_tokens=20)))
    for name in ("a", "b"):
        assert await bench.tokens(name) == await plain.tokens(name)
    await plain.engine.stop(10.0)
    assert plain.scores == []
    at = {name: [score.generated for job_id, score in bench.scores if job_id == name] for name in ("a", "b")}
    assert at == {"a": list(range(SCORE_EVERY, 40, SCORE_EVERY)), "b": list(range(SCORE_EVERY, 20, SCORE_EVERY))}
    for _, score in bench.scores:
        assert (len(score.probabilities), score.span_tokens) == (10, 256)
        assert abs(sum(score.probabilities) - 1) < 0.01
    assert len({score.probabilities for _, score in bench.scores}) > 3


async def test_a_score_depends_on_its_sequence_alone(bench: Bench) -> None:
    bench.engine.add(sequence_of(bench.pool, make_job("alone", PROMPT)))
    await bench.tokens("alone")
    bench.engine.add(sequence_of(bench.pool, make_job("other", range(5, 60), seed=1)))
    bench.engine.add(sequence_of(bench.pool, make_job("beside", PROMPT)))
    await bench.tokens("beside")
    await bench.tokens("other")
    alone, beside = ([score for job_id, score in bench.scores if job_id == name] for name in ("alone", "beside"))
    assert alone == beside


def test_a_state_without_numbers_gives_no_score() -> None:
    pool = PagePool(INFO, FORMAT, num_slots=16, max_jobs=4)
    sequences = [sequence_of(pool, make_job(name, PROMPT)) for name in ("good", "bad")]
    hidden = torch.zeros(2, HIDDEN)
    hidden[1, 3] = float("nan")
    assert list(Scorer(probe()).scores(sequences, [0, 1], hidden)) == ["good"]


def test_a_sure_probe_says_so() -> None:
    pool = PagePool(INFO, FORMAT, num_slots=16, max_jobs=4)
    sequences = [sequence_of(pool, make_job("a", PROMPT))]
    score = Scorer(probe(1000)).scores(sequences, [0], torch.ones(1, HIDDEN))["a"]
    assert max(score.probabilities) == 1.0


def test_a_heartbeat_takes_the_newest_score_of_each_job_once_and_of_those_held_alone() -> None:
    def score(generated: int) -> LengthScore:
        return LengthScore(generated=generated, span_tokens=256, probabilities=(0.5, 0.5))

    new = NewScores()
    new.add({"a": score(8), "gone": score(8)})
    new.add({"a": score(16)})
    assert new.take({"a"}) == {"a": score(16)}
    assert new.take({"a", "gone"}) == {}
    many = {f"j{i}": score(8) for i in range(MAX_SCORES + 3)}
    new.add(many)
    assert len(new.take(many)) == MAX_SCORES
    assert len(new.take(many)) == 3
    assert new.take(many) == {}
