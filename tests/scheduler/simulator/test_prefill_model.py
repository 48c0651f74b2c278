"""Chunks: who shares one, what they cost, and who overtakes."""

from __future__ import annotations

import pytest

from scheduler.simulator.prefill_model import PrefillModel, Prompt

A, B, C = COST = (1e-2, 1e-4, 1e-8)
CHUNK = 100


def play(prompts: list[tuple[float, Prompt]]) -> dict[str, float]:
    """Adds each prompt at its time; returns when each was complete."""
    model, ends = PrefillModel(COST, CHUNK), {}
    while prompts or model.busy_until is not None:
        if prompts and (model.busy_until is None or prompts[0][0] < model.busy_until):
            now, prompt = prompts.pop(0)
            model.add(prompt, now)
        else:
            now = model.busy_until
            ends |= {prompt.job_id: now for prompt in model.finish(now)}
    return ends


def alone(tokens: int) -> float:
    return -(-tokens // CHUNK) * A + B * tokens + C * tokens**2


@pytest.mark.parametrize("tokens", [1, 99, 100, 101, 199, 200, 250, 1000])
def test_a_prompt_alone_costs_its_chunks(tokens: int) -> None:
    assert play([(0.0, Prompt("a", tokens))]) == {"a": pytest.approx(alone(tokens))}


def test_short_prompts_share_a_chunk() -> None:
    ends = play([(0.0, Prompt("first", 10)), *((0.001, Prompt(name, 30)) for name in "abc")])
    assert ends["a"] == ends["b"] == ends["c"] == pytest.approx(alone(10) + A + B * 90 + 3 * C * 30**2)


def test_the_rest_of_a_long_prompt_goes_on_before_those_that_came_later() -> None:
    ends = play([(0.0, Prompt("long", 250)), (0.001, Prompt("short", 10))])
    assert ends["long"] == ends["short"] == pytest.approx(alone(250) + B * 10 + C * 10**2)


def test_a_higher_priority_goes_on_at_the_end_of_the_chunk() -> None:
    first_chunk = A + B * 100 + C * 100**2
    ends = play([(0.0, Prompt("long", 1000)), (first_chunk / 2, Prompt("urgent", 100, priority=1))])
    assert ends["urgent"] == pytest.approx(2 * first_chunk)
    assert ends["long"] == pytest.approx(alone(1000) + first_chunk)


def test_an_equal_priority_does_not() -> None:
    ends = play([(0.0, Prompt("long", 1000)), (0.001, Prompt("later", 100))])
    assert ends["long"] == pytest.approx(alone(1000))


def test_a_dropped_prompt_leaves_after_its_chunk() -> None:
    model, prompt, other = PrefillModel(COST, CHUNK), Prompt("a", 1000), Prompt("b", 10)
    model.add(prompt, 0.0)
    model.add(other, 0.0)
    model.drop(prompt, 0.001)
    assert model.busy_until == pytest.approx(A + B * 100 + C * 100**2)
    assert model.finish(model.busy_until) == []
    assert model.finish(model.busy_until) == [other]
    assert model.busy_until is None
