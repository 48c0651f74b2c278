"""Preempt and Resume on a running engine: steps go on beside copies, tokens are the same, and whatever ends a job meanwhile wins."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from decode.copier import Copier, HostCopy
from decode.held import Held, State
from decode.pool import PagePool
from decode.swaps import Swaps
from packhorse.errors import PackhorseError
from tests.decode.fakes import Bench, make_job, sequence_of
from tests.shapes import FORMAT, INFO
from tests.waiting import PATIENCE_SECONDS, until
from transport.messages import Model, Preempt, Preempted, Resumed, ToolPause

PROMPT = range(1, 131)


class SlowCopier(Copier):
    """Copies wait until `open` is set, or fail."""

    def __init__(self, pool: PagePool) -> None:
        super().__init__(pool.pages, pool.residual)
        self.open = threading.Event()
        self.open.set()
        self.order: list[int] = []  # rows, as they are copied out
        self.fails = False

    def copy_out(self, slots: Any, row: int) -> HostCopy:
        assert self.open.wait(PATIENCE_SECONDS)
        self.order.append(row)
        if self.fails:
            raise RuntimeError("no memory")
        return super().copy_out(slots, row)

    def copy_back(self, copy: HostCopy, slots: Any, row: int) -> None:
        assert self.open.wait(PATIENCE_SECONDS)
        super().copy_back(copy, slots, row)


class Side(Bench):
    """The part of a decode worker that swaps."""

    def __init__(self) -> None:
        super().__init__(PagePool(INFO, FORMAT, num_slots=40, max_jobs=4))
        self.copier = SlowCopier(self.pool)
        self.jobs: dict[str, Held] = {}
        self.said: list[Model] = []
        self.errors: list[str] = []
        self.swaps = Swaps(
            "d1", self.jobs, self.pool, self.engine, self.copier, self.said.append, self.free, self._failed
        )

    def free(self, job_id: str) -> None:
        del self.jobs[job_id]
        self.pool.free(job_id)

    def _failed(self, job_id: str, error: PackhorseError) -> None:
        self.errors.append(error.message)

    def start(self, job_id: str, pause: ToolPause | None = None, **sampling: Any) -> Held:
        job = make_job(job_id, PROMPT, **sampling).model_copy(update={"tool_pause": pause})
        intake: Any = type("Arrived", (), {"job": job})
        held = self.jobs[job_id] = Held(intake, None, State.RUNNING, sequence_of(self.pool, intake.job))
        assert held.sequence is not None
        self.engine.add(held.sequence)
        return held


@pytest_asyncio.fixture
async def side(no_tasks: None) -> AsyncIterator[Side]:
    side = Side()
    yield side
    await side.engine.stop(PATIENCE_SECONDS)
    side.copier.close()
    assert side.failed == []


async def undisturbed(side: Side, **sampling: Any) -> list[int]:
    held = side.start("undisturbed", **sampling)
    tokens = await side.tokens("undisturbed")
    side.free(held.job.job_id)
    return tokens


async def test_steps_go_on_during_a_copy_and_memory_isfree_once_it_is_done(side: Side) -> None:
    expected = await undisturbed(side, max_tokens=200)
    side.gate.hold("a", 30)
    side.gate.hold("b", 30)
    held = side.start("a", max_tokens=200)
    side.start("b", max_tokens=400, seed=8)
    await side.tokens("a", 20)
    both = side.pool.used_slots
    side.copier.open.clear()
    side.swaps.preempt(Preempt(job_id="a", number=1))
    await until(lambda: side.pool.host_pages_used == 5)
    steps = side.steps
    side.gate.hold("b", 100)
    await side.tokens("b", 90)
    assert side.steps >= steps + 50
    assert (side.said, side.pool.used_slots, side.pool.host_pages_used) == ([], both, 5)
    stopped_at = len(side.outputs["a"])
    side.copier.open.set()
    await until(lambda: held.state is State.OUT)
    (said,) = side.said
    assert isinstance(said, Preempted)
    assert (said.job_id, said.number) == ("a", 1)
    assert said.moved_bytes > 0
    assert said.move_seconds > 0
    assert (side.pool.used_slots, side.pool.used_rows, side.pool.host_pages_used) == (both - 5, 1, 5)

    side.copier.open.clear()
    side.swaps.resume("a")
    await until(lambda: side.pool.used_slots == both)
    side.gate.hold("b", 170)
    await side.tokens("b", 160)
    assert len(side.outputs["a"]) == stopped_at
    assert (side.pool.used_slots, side.pool.host_pages_used) == (both, 5)
    side.copier.open.set()
    side.gate.let_go("a")
    side.gate.let_go("b")
    assert await side.tokens("a") == expected
    assert side.said[1:] == [Resumed(job_id="a", worker_id="d1")]
    assert side.pool.host_pages_used == 0


@pytest.mark.parametrize(
    "sampling",
    [{}, {"temperature": 0.0, "frequency_penalty": 1.5, "logprobs": 2}],
    ids=["drawn", "penalized"],
)
async def test_a_dropped_job_goes_on_where_it_was(side: Side, sampling: dict[str, Any]) -> None:
    """Dropped once while it generates, and once more while its tokens are replayed."""
    expected = await undisturbed(side, max_tokens=90, **sampling)
    whole = list(side.outputs["undisturbed"])
    side.gate.hold("a", 45)
    held = side.start("a", max_tokens=90, **sampling)
    await side.tokens("a", 40)
    for number in (1, 2):
        side.swaps.preempt(Preempt(job_id="a", number=number, drop=True))
        await until(lambda number=number: len(side.said) == number)  # type: ignore[misc]
        assert (side.pool.used_slots, side.pool.used_rows, side.jobs) == (0, 0, {})
        said = side.said[-1]
        assert isinstance(said, Preempted)
        assert said.replay is not None
        known = [held.job.prompt[-1], *(output.token_id for output in side.outputs["a"])]
        assert list(said.replay.tokens) == known
        assert said.replay.stats.preemptions == number
        sequence = sequence_of(side.pool, held.job, said.replay)
        held = side.jobs["a"] = Held(held.intake, said.replay, State.RUNNING, sequence)
        side.gate.hold("a", 25)
        side.engine.add(sequence)
        if number == 1:
            await until(lambda sequence=sequence: sequence.generated > 20)  # type: ignore[misc]
    side.gate.let_go("a")
    assert await side.tokens("a") == expected
    told = [output.model_copy(update={"job_id": "undisturbed", "stats": None}) for output in side.outputs["a"]]
    assert told == [output.model_copy(update={"stats": None}) for output in whole]
    last = side.outputs["a"][-1]
    assert last.stats is not None
    assert (last.stats.completion_tokens, last.stats.preemptions) == (90, 2)


@pytest.mark.parametrize(("dropped_at", "pauses_again"), [(40, []), (20, ["a"])])
async def test_a_dropped_job_does_not_pause_where_it_was_beyond_its_pause(
    side: Side, dropped_at: int, pauses_again: list[str]
) -> None:
    """One that was dropped in its pause comes to it again, when its tokens are replayed; the scheduler knows what is left of it."""
    expected = await undisturbed(side, max_tokens=90)
    held = side.start("a", ToolPause(after_tokens=20, seconds=1.0), max_tokens=90)
    assert held.sequence is not None
    await until(lambda: side.paused == ["a"])
    if dropped_at > 20:
        side.gate.hold("a", dropped_at + 5)
        side.engine.add(held.sequence)
        await side.tokens("a", dropped_at)
    side.paused.clear()
    side.swaps.preempt(Preempt(job_id="a", number=1, drop=True))
    await until(lambda: len(side.said) == 1)
    said = side.said[-1]
    assert isinstance(said, Preempted)
    assert said.replay is not None
    sequence = sequence_of(side.pool, held.job, said.replay)
    side.jobs["a"] = Held(held.intake, said.replay, State.RUNNING, sequence)
    side.gate.let_go("a")
    side.engine.add(sequence)
    if pauses_again:
        await until(lambda: side.paused == pauses_again)
        assert (sequence.generated, len(side.outputs["a"])) == (20, 19)  # token 1 is not the engine's
        side.engine.add(sequence)
    assert await side.tokens("a") == expected
    assert side.paused == pauses_again


async def test_jobs_leave_in_the_order_of_the_messages(side: Side) -> None:
    for name in "abc":
        side.gate.hold(name, 10)
    held = {name: side.start(name, max_tokens=400) for name in "abc"}
    rows = {name: side.pool.leave(name).row for name in held}
    for name in held:
        side.pool.came_back(name)
    for name in ("c", "a", "b"):
        side.swaps.preempt(Preempt(job_id=name, number=1))
    await until(lambda: all(one.state is State.OUT for one in held.values()))
    assert side.copier.order == [rows["c"], rows["a"], rows["b"]]
    assert [message.job_id for message in side.said if isinstance(message, Preempted)] == ["c", "a", "b"]


async def test_what_is_not_running_is_not_stopped_and_what_is_not_out_does_not_come_back(side: Side) -> None:
    side.gate.hold("a", 10)
    held = side.start("a", max_tokens=400)
    side.swaps.resume("a")
    side.swaps.resume("nobody")
    side.swaps.preempt(Preempt(job_id="nobody", number=1))
    side.swaps.preempt(Preempt(job_id="a", number=1))
    side.swaps.preempt(Preempt(job_id="a", number=2))
    await until(lambda: held.state is State.OUT)
    assert [message.number for message in side.said if isinstance(message, Preempted)] == [1]


@pytest.mark.parametrize("when", ["leaving", "returning"])
async def test_a_job_that_ends_on_its_way_is_not_heard_of_again(side: Side, when: str) -> None:
    side.gate.hold("a", 10)
    held = side.start("a", max_tokens=400)
    if when == "leaving":
        side.copier.open.clear()
        side.swaps.preempt(Preempt(job_id="a", number=1))
        await until(lambda: side.pool.host_pages_used > 0)
    else:
        side.swaps.preempt(Preempt(job_id="a", number=1))
        await until(lambda: held.state is State.OUT)
        side.copier.open.clear()
        side.swaps.resume("a")
        await until(lambda: side.pool.used_rows > 0)
    said = len(side.said)
    held.state = State.LEAVING  # as the worker does to end it
    side.copier.open.set()
    assert held.moving is not None
    await held.moving
    side.pool.free("a")
    assert len(side.said) == said
    assert (side.pool.used_slots, side.pool.used_rows, side.pool.host_pages_used) == (0, 0, 0)


async def test_a_copy_that_fails_fails_the_job_by_name(side: Side) -> None:
    side.gate.hold("a", 10)
    side.start("a", max_tokens=400)
    side.copier.fails = True
    side.swaps.preempt(Preempt(job_id="a", number=1))
    await until(lambda: bool(side.errors))
    assert side.errors == ["the pages of job a cannot be moved: no memory"]
    assert side.said == []
