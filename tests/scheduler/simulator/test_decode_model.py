"""The jumping decode engine against one that steps from token to token."""

from __future__ import annotations

import random

import pytest

from scheduler.simulator.decode_model import DecodeModel, Sequence

A, B, C = COST = (1e-2, 1e-5, 1e-4)


def end_times(model: DecodeModel, plan: dict[float, list[tuple[str, str, int, int]]]) -> dict[str, float]:
    """Plays (time: (what, job id, context, remaining)) and returns when each job finished, or left (id with a minus)."""
    times, ends = sorted(plan), {}
    while times or model.next_change is not None:
        if times and (model.next_change is None or times[0] < model.next_change):
            now = times.pop(0)
            for what, job_id, context, remaining in plan[now]:
                if what == "add":
                    model.add(Sequence(job_id, context, remaining))
                    model.start(job_id, now)
                elif any(sequence.job_id == job_id for sequence in model):
                    getattr(model, what)(job_id, now)
        else:
            now = model.next_change
            finished, left, *_ = model.change(now)
            ends |= dict.fromkeys(finished, now) | {f"-{job_id}": now for job_id in left}
    return ends


def stepped(plan: dict[float, list[tuple[str, str, int, int]]]) -> dict[str, float]:
    """The same, one token after the other."""
    jobs: dict[str, list] = {}  # context, remaining, running
    times, ends, now = sorted(plan), {}, 0.0
    while times or any(job[2] for job in jobs.values()):
        if not any(job[2] for job in jobs.values()):
            now = max(now, times[0])
        while times and times[0] <= now:
            for what, job_id, context, remaining in plan[times.pop(0)]:
                if what == "add":
                    jobs[job_id] = [context, remaining, True]
                elif job_id in jobs and what == "remove":
                    del jobs[job_id]
                    ends[f"-{job_id}"] = now
                elif job_id in jobs:
                    jobs[job_id][2] = what == "start"
        running = [job_id for job_id, job in jobs.items() if job[2]]
        if not running:
            continue
        now += A + B * sum(jobs[job_id][0] for job_id in running) + C * len(running)
        for job_id in running:
            jobs[job_id][0] += 1
            jobs[job_id][1] -= 1
            if jobs[job_id][1] == 0:
                ends[job_id] = now
                del jobs[job_id]
    return ends


@pytest.mark.parametrize("seed", range(8))
def test_jumps_end_where_single_steps_end(seed: int) -> None:
    rng = random.Random(seed)
    plan: dict[float, list[tuple[str, str, int, int]]] = {}
    for number in range(30):
        name, at = f"j{number}", rng.uniform(0, 3)
        plan[at] = [("add", name, rng.randint(1, 500), rng.randint(1, 120))]
        if rng.random() < 0.5:
            plan[at + rng.uniform(0, 0.5)] = [("pause", name, 0, 0)]
            plan[at + rng.uniform(0.6, 2)] = [("start", name, 0, 0)]
        elif rng.random() < 0.3:
            plan[at + rng.uniform(0, 1)] = [("remove", name, 0, 0)]
    expected, got = stepped(plan), end_times(DecodeModel(COST), plan)
    assert got.keys() == expected.keys()
    assert [got[name] for name in expected] == pytest.approx(list(expected.values()), rel=1e-9)


def test_a_job_that_comes_within_a_step_joins_at_its_end() -> None:
    model = DecodeModel((1.0, 0.0, 0.0))
    ends = end_times(model, {0.0: [("add", "a", 1, 3)], 0.5: [("add", "b", 1, 1)]})
    assert ends == {"a": 3.0, "b": 2.0}


def test_progress_counts_the_steps_that_have_ended() -> None:
    model = DecodeModel((1.0, 0.0, 0.0))
    model.add(Sequence("a", 10, 5))
    assert model.progress("a", 0.0) == (10, 5)
    model.start("a", 0.0)
    model.change(0.0)
    assert [model.progress("a", now) for now in (0.0, 0.9, 1.0, 2.5)] == [(10, 5), (10, 5), (11, 4), (12, 3)]


def test_run_set_pauses_all_others() -> None:
    model = DecodeModel((1.0, 0.0, 0.0))
    for name in "abc":
        model.add(Sequence(name, 1, 4))
    model.run_set({"a", "b"}, 0.0)
    model.change(0.0)
    assert model.batch == 2
    model.run_set({"c"}, 1.5)
    assert model.next_change == 2.0
    assert model.change(2.0) == ([], [], ["a", "b"], [])
    assert (model.batch, model.progress("a", 2.0), model.progress("c", 2.0)) == (1, (3, 2), (1, 4))
    assert model.next_change == 6.0
    assert model.change(6.0) == (["c"], [], [], [])
    assert model.next_change is None
    assert len(model) == 2
