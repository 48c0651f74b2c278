"""The laws of sampling: limits, penalties, bias, seeds that no batch disturbs, logprobs of the raw model."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from model import draw
from model.sampler import MIN_LOGPROB, SamplerState, broken_rows, sample
from packhorse.errors import PackhorseError, RequestError
from transport.messages import Sampling

VOCAB = 50


def _state(prompt: Sequence[int] = (1,), generated: Sequence[int] = (), **sampling: Any) -> SamplerState:
    state = SamplerState(Sampling(**{"max_tokens": 1000, "seed": 0} | sampling), prompt)
    for token in generated:
        state.record(token)
    return state


def _logits(*rows: Sequence[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float32)


def _random(rows: int, seed: int = 0, vocab: int = VOCAB) -> Tensor:
    return 3 * torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed))


def _choose(logits: Tensor, **sampling: Any) -> int:
    return sample(logits, [_state(**sampling)])[0].token_id


def _drawn(logits: Tensor, times: int = 400, **sampling: Any) -> Counter[int]:
    """Tokens that `times` seeds draw from one row."""
    states = [_state(**sampling | {"seed": seed}) for seed in range(times)]
    return Counter(one.token_id for one in sample(logits.expand(times, -1), states))


# ---- greedy


def test_greedy_is_argmax_and_ties_go_to_the_lowest_id() -> None:
    assert _choose(_logits([0, 5, 1, 5]), temperature=0) == 1
    logits = _random(8)
    chosen = [one.token_id for one in sample(logits, [_state(temperature=0)] * 8)]
    assert chosen == logits.argmax(-1).tolist()


def test_a_vanishing_temperature_is_greedy() -> None:
    assert _choose(_random(1), temperature=1e-300) == int(_random(1).argmax())


# ---- limits


def test_draws_follow_the_distribution() -> None:
    probs = [0.5, 0.3, 0.15, 0.05]
    drawn = _drawn(_logits([math.log(p) for p in probs]), times=4000)
    for token, p in enumerate(probs):  # six standard deviations of a binomial share
        assert abs(drawn[token] / 4000 - p) < 6 * math.sqrt(p * (1 - p) / 4000)


def test_temperature_flattens_and_sharpens() -> None:
    logits = _logits([2, 1, 0])
    shares = [_drawn(logits, temperature=t)[0] for t in (0.3, 1.0, 5.0)]
    assert shares[0] > shares[1] > shares[2]


def test_top_k_keeps_k_tokens() -> None:
    assert set(_drawn(_logits([1, 4, 3, 2]), top_k=2, temperature=2)) == {1, 2}
    assert set(_drawn(_logits([1, 1, 1, 1]), top_k=2)) == {0, 1}  # of equal ones, the lowest ids
    assert set(_drawn(_logits([1, 1]), top_k=100)) == {0, 1}


def test_top_p_keeps_the_fewest_tokens_that_reach_it() -> None:
    logits = _logits([math.log(p) for p in (0.1, 0.5, 0.3, 0.1)])
    assert set(_drawn(logits, top_p=0.4)) == {1}
    assert set(_drawn(logits, top_p=0.6)) == {1, 2}
    assert set(_drawn(logits, top_p=0.85)) == {0, 1, 2}
    assert set(_drawn(logits, top_p=1.0)) == {0, 1, 2, 3}
    assert set(_drawn(logits, top_p=1e-9)) == {1}


def test_top_p_is_of_what_top_k_left() -> None:
    logits = _logits([math.log(p) for p in (0.4, 0.3, 0.2, 0.1)])
    assert set(_drawn(logits, top_k=2, top_p=0.55)) == {0}  # 0.4 of 0.7 is 0.57
    assert set(_drawn(logits, top_p=0.55)) == {0, 1}


def test_min_p_is_relative_to_the_most_probable() -> None:
    logits = _logits([math.log(p) for p in (0.5, 0.3, 0.15, 0.05)])
    assert set(_drawn(logits, min_p=0.25)) == {0, 1, 2}
    assert set(_drawn(logits, min_p=1.0)) == {0}


def test_excluded_tokens_are_never_drawn() -> None:
    assert set(_drawn(_logits([-math.inf, 0, -math.inf, 0]))) == {1, 3}


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**63 - 1),
    top_k=st.integers(0, VOCAB + 5),
    top_p=st.floats(0.01, 1),
    min_p=st.floats(0, 1),
    temperature=st.floats(0.01, 3),
)
def test_draws_stay_within_every_limit(seed: int, top_k: int, top_p: float, min_p: float, temperature: float) -> None:
    logits = _random(1, seed % 1000)
    token = _choose(logits, seed=seed, top_k=top_k, top_p=top_p, min_p=min_p, temperature=temperature)
    probs = (logits[0].double() / temperature).softmax(-1)
    order = probs.argsort(descending=True).tolist()
    rank = order.index(token)
    assert rank < (top_k or VOCAB)
    kept = probs[order[: top_k or VOCAB]]
    assert float(kept[:rank].sum() / kept.sum()) < top_p + 1e-9
    assert float(probs[token]) >= min_p * float(probs.max()) * (1 - 1e-9)


# ---- large vocabularies


def _large(rows: int, seed: int) -> Tensor:
    """Logits of 16,384 tokens with the many ties that a bfloat16 model has."""
    return _random(rows, seed, vocab=16_384).bfloat16().float()


LIMITS: list[dict[str, Any]] = [
    {},
    {"temperature": 3.0},
    {"temperature": 0.3},
    {"top_k": 40},
    {"top_k": 1024, "temperature": 9.0},
    {"top_k": 3000, "top_p": 0.9},
    {"top_p": 0.5},
    {"top_p": 0.999},
    {"min_p": 0.05},
    {"min_p": 1e-5, "temperature": 2.0},
]


@pytest.mark.parametrize("limits", LIMITS, ids=str)
def test_the_head_decides_nothing_that_the_whole_would_not(
    limits: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    logits, states = _large(40, 3), [_state(seed=i, **limits) for i in range(40)]
    by_head = [one.token_id for one in sample(logits, states)]
    monkeypatch.setattr("model.draw.HEAD", 16_384)
    assert by_head == [one.token_id for one in sample(logits, states)]


@pytest.mark.parametrize("limits", [{"top_k": 40}, {"top_p": 0.3, "temperature": 0.5}, {"temperature": 0.3}], ids=str)
def test_the_head_spares_the_whole_sort(limits: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    ranked = draw._ranked
    monkeypatch.setattr(draw, "_ranked", lambda logits, size: sizes.append(size) or ranked(logits, size))
    sample(_large(4, 3), [_state(seed=i, **limits) for i in range(4)])
    assert sizes == [draw.HEAD]


def test_a_flat_distribution_draws_from_all_of_it() -> None:
    drawn = [_choose(torch.zeros(1, 16_384), seed=seed) for seed in range(200)]
    assert max(drawn) > 15_000
    assert sorted(drawn)[100] == pytest.approx(8192, abs=6 * 16_384 / (2 * math.sqrt(200)))


# ---- bias and penalties


def test_logit_bias_adds() -> None:
    assert _choose(_logits([0, 1, 2]), temperature=0, logit_bias={0: 3.0}) == 0
    assert set(_drawn(_logits([0, 0, 0]), logit_bias={1: -100.0})) == {0, 2}


def test_logit_bias_on_an_unknown_token_is_a_request_error() -> None:
    with pytest.raises(RequestError, match="token 3") as caught:
        _choose(_logits([0, 1, 2]), logit_bias={3: 1.0})
    assert caught.value.param == "logit_bias"


def _adjusted(logits: Sequence[float], **state: Any) -> list[float]:
    row = torch.tensor(logits, dtype=torch.float32)
    _state(**state).adjust(row)
    return row.tolist()


def test_repetition_penalty_scales_prompt_and_output_tokens() -> None:
    assert _adjusted([2, -2, 2, -2], prompt=(0, 1, 0), generated=(2,), repetition_penalty=2.0) == [1, -4, 1, -2]


def test_presence_and_frequency_penalties_count_the_output_alone() -> None:
    state = {"prompt": (0, 0), "generated": (1, 2, 2)}
    assert _adjusted([1, 1, 1, 1], presence_penalty=0.5, **state) == [1, 0.5, 0.5, 1]
    assert _adjusted([1, 1, 1, 1], frequency_penalty=0.5, **state) == [1, 0.5, 0, 1]
    assert _adjusted([1, 1, 1, 1], presence_penalty=-1.0, frequency_penalty=0.5, **state) == [1, 1.5, 1, 1]


def test_bias_comes_before_penalties() -> None:
    assert _adjusted([0, 0], prompt=(0,), logit_bias={0: 4.0}, repetition_penalty=2.0) == [2, 0]


def test_sampling_leaves_the_models_logits_alone() -> None:
    logits = _random(2)
    before = logits.clone()
    sample(logits, [_state(generated=(3, 4), frequency_penalty=1.0, logit_bias={0: 9.0}, logprobs=3)] * 2)
    assert torch.equal(logits, before)


def test_penalties_work_on_logits_of_a_forward() -> None:
    with torch.inference_mode():
        logits = _random(1) * 1.0
    assert _choose(logits, temperature=0, logit_bias={7: 100.0}) == 7


# ---- randomness


def _generate(state: SamplerState, tokens: int, others: int, at: int) -> list[int]:
    """Tokens of `state`, whose logits depend on its own past, as row `at` of a batch with `others` that differ each step."""
    for step in range(tokens):
        past = state.generated[-1] if state.generated else 0
        logits, states = _random(others + 1, 999 + step), [_state(seed=77 + i, temperature=0.5) for i in range(others)]
        logits[at] = _random(1, past)[0]
        states.insert(at, state)
        state.record(sample(logits, states)[at].token_id)
    return state.generated


def test_a_seeded_job_gives_the_same_tokens_in_any_batch() -> None:
    settings_ = {"seed": 42, "temperature": 1.3, "top_p": 0.95, "top_k": 30, "min_p": 0.01, "frequency_penalty": 0.2}
    alone = _generate(_state(**settings_), 30, others=0, at=0)
    assert alone == _generate(_state(**settings_), 30, others=7, at=3)
    assert alone == _generate(_state(**settings_), 30, others=2, at=2)
    assert alone != _generate(_state(**settings_ | {"seed": 43}), 30, others=0, at=0)


def test_another_worker_continues_where_the_first_left_off() -> None:
    whole = _generate(_state(seed=5), 10, others=0, at=0)
    decode = _state(seed=5)
    decode.record(whole[0])
    assert _generate(decode, 9, others=4, at=1) == whole


def test_random_numbers_differ_by_token_and_seed() -> None:
    numbers = {_state(seed=seed, generated=range(i)).random() for seed in (0, 1, 2**63 - 1) for i in range(50)}
    assert len(numbers) == 150
    assert all(0 <= number < 1 for number in numbers)
    assert abs(sum(numbers) / 150 - 0.5) < 6 * math.sqrt(1 / 12 / 150)


def test_greedy_and_drawn_jobs_share_a_batch() -> None:
    logits = _random(6)
    states = [_state(temperature=0 if i % 2 else 1.0, seed=i) for i in range(6)]
    alone = [sample(logits[i : i + 1], [states[i]])[0] for i in range(6)]
    assert sample(logits, states) == alone


# ---- logprobs


def test_logprobs_are_the_raw_models() -> None:
    logits = _random(1)
    expected = logits[0].log_softmax(-1)
    (one,) = sample(logits, [_state(temperature=0.1, top_k=1, logit_bias={9: 100.0}, logprobs=4)])
    assert one.token_id == 9
    assert one.logprob == pytest.approx(float(expected[9]))
    best = expected.topk(4)
    assert [top.token_id for top in one.top_logprobs] == best.indices.tolist()
    assert [top.logprob for top in one.top_logprobs] == pytest.approx(best.values.tolist())


def test_logprobs_are_given_to_those_who_ask() -> None:
    none, chosen = sample(_random(2), [_state(), _state(logprobs=0)])
    assert none.logprob is None
    assert chosen.logprob is not None
    assert none.top_logprobs == chosen.top_logprobs == ()


def test_logprobs_of_excluded_tokens_are_finite() -> None:
    (one,) = sample(_logits([0, -math.inf]), [_state(logprobs=9)])
    assert [top.logprob for top in one.top_logprobs] == [0.0, MIN_LOGPROB]
    json.dumps([top.logprob for top in one.top_logprobs], allow_nan=False)


# ---- what is refused


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_broken_logits_are_an_error_that_names_the_job(bad: float) -> None:
    logits = _random(3)
    logits[1, 4] = bad
    states = [_state(), _state(prompt=(1, 2, 3), seed=1234, temperature=0), _state()]
    with pytest.raises(PackhorseError, match=r"row 1: prompt of 3 tokens, 0 generated, seed 1234"):
        sample(logits, states)
    assert broken_rows(logits) == [False, True, False]


def test_rows_with_nothing_to_choose_are_broken() -> None:
    assert broken_rows(_logits([-math.inf, -math.inf], [0, -math.inf])) == [True, False]
    assert broken_rows(torch.empty(0, 5)) == []


def test_one_row_per_job() -> None:
    with pytest.raises(ValueError, match="not \\[2, vocab\\]"):
        sample(_random(1), [_state(), _state()])
    assert sample(torch.empty(0, VOCAB), []) == []
