"""Shared prompt pages: found by digest, never given up under a job, the last used and the last of a prompt first; and what is reported."""

from __future__ import annotations

import random

import pytest

from decode.prefix_report import MOST_DIGESTS, PrefixReport
from decode.prefix_store import PrefixStore
from scheduler.prefixes import HeldPrefixes, PrefixHolders
from transport.messages import PrefixChanges
from transport.page_digest import DIGEST_BYTES


def digest(name: str) -> bytes:
    return name.encode().ljust(DIGEST_BYTES, b".")


def chain(*names: str) -> list[bytes]:
    return [digest(name) for name in names]


A = chain("a0", "a1", "a2")
B = chain("a0", "a1", "b2", "b3")


@pytest.fixture
def store() -> PrefixStore:
    """Holds A in slots 0 to 2, used by one job."""
    store = PrefixStore()
    assert store.share(A, [0, 1, 2]) == [0, 1, 2]
    return store


def test_the_longest_prefix_is_found(store: PrefixStore) -> None:
    assert store.use(B) == [0, 1]
    assert store.use(chain("x", "a1")) == []
    assert store.use(A[1:]) == [1, 2]  # digests say what came before: page 1 is page 1 wherever it is asked for


def test_a_page_that_is_held_already_is_used_in_its_place(store: PrefixStore) -> None:
    assert store.share(B, [5, 6, 7, 8]) == [0, 1, 7, 8]
    assert len(store) == 5


def test_pages_in_use_are_not_given_up(store: PrefixStore) -> None:
    store.use(A[:1])
    store.release(A)
    assert store.num_idle == 2
    assert [store.evict(), store.evict()] == [2, 1]
    with pytest.raises(KeyError):
        store.evict()
    assert store.use(A) == [0]


def test_the_least_recently_used_go_first_and_the_last_pages_of_a_prompt_before_its_first(store: PrefixStore) -> None:
    store.share(B, [5, 6, 7, 8])
    store.release(B)
    store.release(A)
    assert [store.evict() for _ in range(5)] == [8, 7, 2, 1, 0]
    store.share(A, [0, 1, 2])
    store.release(A)
    store.share(chain("c0"), [3])
    store.release(chain("c0"))
    store.use(A)
    store.release(A)  # used again since
    assert [store.evict() for _ in range(4)] == [3, 2, 1, 0]


# ---- what is reported


def apply(changes: PrefixChanges | None, known: HeldPrefixes) -> None:
    if changes is not None:
        known.change(changes.added, changes.gone)


def test_a_report_has_net_changes_and_each_once() -> None:
    report = PrefixReport()
    report.added(A[0])
    report.added(A[1])
    report.gone(A[1])
    assert report.take("d") == PrefixChanges(worker_id="d", added=A[0])
    report.gone(A[0])
    report.added(A[0])
    assert report.take("d") is None
    report.gone(A[0])
    report.added(A[2])
    assert report.take("d") == PrefixChanges(worker_id="d", added=A[2], gone=A[0])


def test_a_long_report_comes_in_parts() -> None:
    report = PrefixReport()
    digests = [digest(str(i)) for i in range(MOST_DIGESTS + 3)]
    for one in digests:
        report.added(one)
    first, second = report.take("d"), report.take("d")
    assert first is not None
    assert second is not None
    assert first.added + second.added == b"".join(digests)
    assert len(second.added) == 3 * DIGEST_BYTES
    assert report.take("d") is None


def test_a_new_listener_hears_of_everything_first_pages_first(store: PrefixStore) -> None:
    store.share(B, [5, 6, 7, 8])
    store.release(B)
    store.report.take("d")
    store.restart_report()
    changes = store.report.take("d")
    assert changes is not None
    assert changes.added == b"".join([*A, B[2], B[3]])


# ---- any order of events, against a model


@pytest.mark.parametrize("seed", range(10))
def test_any_order_of_use_share_release_and_evict(seed: int) -> None:
    """The model: a tree of prompts; who uses which page; when each was last let go. Slots are numbered for ever."""
    draw, store, known = random.Random(seed), PrefixStore(), HeldPrefixes("d", PrefixHolders())
    held: dict[bytes, int] = {}  # digest -> slot
    jobs: list[tuple[list[bytes], int]] = []  # digests of the prompt, how many of them the job uses
    last_used: dict[bytes, int] = {}
    slots = iter(range(10**6))

    def users(one: bytes) -> int:
        return sum(one in digests[:used] for digests, used in jobs)

    for now in range(600):
        event = draw.choice(["use", "share", "release", "evict", "report", "restart"])
        if event == "use":
            path = "".join(draw.choice("ab") for _ in range(draw.randint(0, 5)))
            digests = chain(*(path[: i + 1] for i in range(len(path))))
            expected = 0
            while expected < len(digests) and digests[expected] in held:
                expected += 1
            assert store.use(digests) == [held[one] for one in digests[:expected]]
            jobs.append((digests, expected))
        elif event == "share" and jobs:
            i = draw.randrange(len(jobs))
            digests, used = jobs[i]
            fresh = [next(slots) for _ in digests[used:]]
            where = [held.setdefault(one, slot) for one, slot in zip(digests[used:], fresh, strict=True)]
            assert store.share(digests[used:], fresh) == where
            jobs[i] = (digests, len(digests))
        elif event == "release" and jobs:
            digests, used = jobs.pop(draw.randrange(len(jobs)))
            store.release(digests[:used])
            last_used.update((one, now) for one in digests[:used])
        elif event == "evict":
            idle = [one for one in held if not users(one)]
            assert store.num_idle == len(idle)
            if idle:
                slot = store.evict()
                (gone,) = [one for one, at in held.items() if at == slot]
                assert not users(gone)
                assert last_used[gone] == min(last_used[one] for one in idle)
                del held[gone]
        elif event == "report":
            apply(store.report.take("d"), known)
        elif event == "restart":
            known = HeldPrefixes("d", PrefixHolders())
            store.restart_report()
        assert len(store) == len(held)
        for one in held:  # whatever is held can be reached from the prompt's first page
            path = one.rstrip(b".").decode()
            assert all(digest(path[: i + 1]) in held for i in range(len(path)))
    apply(store.report.take("d"), known)
    assert len(known) == len(held)
    assert known.count(list(held)) == len(held)  # type: ignore[arg-type]  # any sequence of digests
