"""What arrives is written where it belongs, and nothing is decoded before all of it has."""

from __future__ import annotations

import pytest
import torch

from decode.intake import Intake
from decode.pool import PagePool
from packhorse.errors import FrameError
from tests.shapes import FORMAT, INFO
from transport.messages import Job, JobStats, Pages, Residual, Sampling, StreamEnd, TokenOutput

PROMPT_TOKENS = 4 + 2 * 64 + 10  # sinks, two pages, ten tokens in the open block
PAGE = INFO.kv_heads * FORMAT.page_bytes
RESIDUAL = 2 * INFO.kv_heads * 14 * INFO.head_dim * 4


@pytest.fixture
def pool() -> PagePool:
    pool = PagePool(INFO, FORMAT, num_slots=4, max_jobs=2)
    pool.reserve("other", 1)
    return pool


@pytest.fixture
def intake(pool: PagePool) -> Intake:
    job = Job(job_id="j", prompt=(1,) * PROMPT_TOKENS, sampling=Sampling(max_tokens=9, seed=0), reply_to="tcp://x")
    return Intake(job, pool, pool.reserve("j", 2))


def _pages(layer: int, first: int, num: int) -> Pages:
    return Pages(job_id="j", layer=layer, first_page=first, num_pages=num, checksum=0)


def _residual(layer: int, num_tokens: int = 14) -> Residual:
    return Residual(job_id="j", layer=layer, num_tokens=num_tokens, checksum=0)


def _end(prompt_tokens: int = PROMPT_TOKENS, num_pages: int = 2) -> StreamEnd:
    token = TokenOutput(job_id="j", index=0, token_id=3)
    return StreamEnd(job_id="j", prompt_tokens=prompt_tokens, num_pages=num_pages, first_token=token, stats=JobStats())


def _bytes(count: int, seed: int) -> memoryview:
    generator = torch.Generator().manual_seed(seed)
    return memoryview(torch.randint(0, 256, (count,), dtype=torch.uint8, generator=generator).numpy())


def test_pages_and_residuals_land_in_their_slots(pool: PagePool, intake: Intake) -> None:
    slots, row = intake.reservation.slots, intake.reservation.row
    intake.pages(_pages(1, 1, 1), _bytes(PAGE, 1))
    intake.pages(_pages(1, 0, 1), _bytes(PAGE, 0))
    intake.pages(_pages(0, 0, 2), _bytes(2 * PAGE, 2))
    for layer in (0, 1):
        intake.residual(_residual(layer), _bytes(RESIDUAL, 10 + layer))
    intake.complete(_end())
    assert pool.pages[1, slots[1]].flatten().tolist() == list(_bytes(PAGE, 1))
    assert pool.pages[1, slots[0]].flatten().tolist() == list(_bytes(PAGE, 0))
    assert pool.pages[0, list(slots)].flatten().tolist() == list(_bytes(2 * PAGE, 2))
    stored = pool.residual[1, row, :, :, :14].contiguous().view(torch.uint8)
    assert stored.flatten().tolist() == list(_bytes(RESIDUAL, 11))
    others = [slot for slot in range(4) if slot not in slots]
    assert not pool.pages[:, others].any()


@pytest.mark.parametrize(
    "message",
    [_pages(2, 0, 1), _pages(0, 2, 1), _pages(0, 1, 2), _pages(0, 0, 0), _pages(-1, 0, 1)],
    ids=["layer", "page", "beyond", "none", "negative"],
)
def test_pages_that_the_job_cannot_have_are_refused(intake: Intake, message: Pages) -> None:
    with pytest.raises(FrameError, match="not among those that are missing"):
        intake.pages(message, _bytes(message.num_pages * PAGE, 0))


def test_pages_come_once(intake: Intake) -> None:
    intake.pages(_pages(0, 0, 1), _bytes(PAGE, 0))
    with pytest.raises(FrameError, match="not among"):
        intake.pages(_pages(0, 0, 1), _bytes(PAGE, 0))


def test_sizes_are_checked(intake: Intake) -> None:
    with pytest.raises(FrameError, match=f"{PAGE - 1} bytes, expected {PAGE}"):
        intake.pages(_pages(0, 0, 1), _bytes(PAGE - 1, 0))
    with pytest.raises(FrameError, match=f"expected {RESIDUAL}"):
        intake.residual(_residual(0), _bytes(RESIDUAL + 4, 0))
    with pytest.raises(FrameError, match="with 13 tokens"):
        intake.residual(_residual(0, 13), _bytes(RESIDUAL, 0))


def test_nothing_may_be_missing_at_the_end(intake: Intake) -> None:
    intake.pages(_pages(0, 0, 2), _bytes(2 * PAGE, 0))
    intake.pages(_pages(1, 0, 1), _bytes(PAGE, 0))
    intake.residual(_residual(0), _bytes(RESIDUAL, 0))
    with pytest.raises(FrameError, match="1 pages and 1 residuals missing"):
        intake.complete(_end())


def test_the_end_must_agree_with_the_job(intake: Intake) -> None:
    with pytest.raises(FrameError, match="the job has 142 in 2"):
        intake.complete(_end(prompt_tokens=141))
