"""Digests tell prompts apart by every token up to the page's end, by the layout and by the salt, and by nothing else."""

from __future__ import annotations

import pytest

from tests.scheduler.fakes import LAYOUT
from transport.messages import Job, Sampling
from transport.page_digest import DIGEST_BYTES, PageDigests

PROMPT = tuple(range(4 + 3 * 64 + 10))


def digests(prompt: tuple[int, ...] = PROMPT, salt: str = "", **layout: object) -> list[bytes]:
    job = Job(job_id="j", prompt=prompt, sampling=Sampling(max_tokens=2, seed=0), reply_to="x", cache_salt=salt)
    return list(PageDigests(job, LAYOUT.model_copy(update=layout)))


@pytest.mark.parametrize(("tokens", "pages"), [(1, 0), (4, 0), (67, 0), (68, 1), (131, 1), (132, 2)])
def test_whole_pages_alone_have_a_digest(tokens: int, pages: int) -> None:
    assert len(digests(PROMPT[:tokens])) == pages


def test_equal_tokens_give_equal_digests_whatever_follows() -> None:
    whole = digests()
    assert len({len(digest) for digest in whole} | {DIGEST_BYTES}) == 1
    assert len(set(whole)) == 3
    assert digests(PROMPT[:140]) == whole[:2]
    assert digests((*PROMPT, 7, 8)) == whole


@pytest.mark.parametrize(
    ("token", "first"), [(0, 0), (3, 0), (4, 0), (67, 0), (68, 1), (131, 1), (132, 2), (195, 2), (196, 3)]
)
def test_another_token_changes_its_page_and_all_after_it(token: int, first: int) -> None:
    other = digests((*PROMPT[:token], 999, *PROMPT[token + 1 :]))
    same = [one == two for one, two in zip(digests(), other, strict=True)]
    assert same == [page < first for page in range(3)]


def test_salt_and_layout_keep_jobs_apart() -> None:
    sets = [set(digests()), set(digests(salt="a")), set(digests(salt="b")), set(digests(kv_format="k4v2"))]
    assert len(set.union(*sets)) == 3 * len(sets)


def test_digests_are_what_they_were_in_other_processes() -> None:
    """Workers and the scheduler compute them apart: no seed of the process, no order of a set may go in."""
    assert digests()[0].hex() == "a8a3d6e36f3cc7a35f14be1ffa1cd481"
    assert digests()[2].hex() == "10605b2c1208b0f720a548e60a4463c4"


def test_there_is_none_beyond_the_last_whole_page() -> None:
    job = Job(job_id="j", prompt=PROMPT, sampling=Sampling(max_tokens=2, seed=0), reply_to="x")
    with pytest.raises(IndexError, match="page 3 of a prompt with 3 whole pages"):
        PageDigests(job, LAYOUT)[3]


def test_only_what_is_asked_for_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    from transport import page_digest

    made: list[int] = []
    real = page_digest._digest
    monkeypatch.setattr(page_digest, "_digest", lambda data: made.append(1) or real(data))
    job = Job(job_id="j", prompt=PROMPT, sampling=Sampling(max_tokens=2, seed=0), reply_to="x", cache_salt="counted")
    some = PageDigests(job, LAYOUT)
    assert some[1] == some[1]
    assert len(made) == 1 + 2  # the salt's, and pages 0 and 1 once
