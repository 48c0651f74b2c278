from __future__ import annotations

import importlib.util
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from packhorse.errors import ConfigError
from scheduler.predictor import make_predictor
from scheduler.predictor.base import JobFeatures
from scheduler.predictor.learned import Learned
from scheduler.predictor.retrieval import Retrieval
from scheduler.predictor.store import FLAT_ROWS, PromptStore
from tests.scheduler.predictor.fakes import Words, made_traffic, teach


def unit(rng: np.random.Generator, count: int, dims: int = 32) -> np.ndarray:
    vectors = rng.standard_normal((count, dims)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def clustered(rng: np.random.Generator, count: int) -> np.ndarray:
    centres = unit(rng, 40)
    vectors = centres[rng.integers(40, size=count)] + 0.05 * rng.standard_normal((count, 32))
    return vectors.astype(np.float32)


def test_the_store_finds_the_nearest() -> None:
    rng = np.random.default_rng(0)
    vectors = clustered(rng, 3 * FLAT_ROWS)
    store = PromptStore(32, capacity=10_000)
    for start in range(0, len(vectors), 100):
        store.add(vectors[start : start + 100], np.arange(start, min(start + 100, len(vectors)), dtype=float))
    found = 0
    for number in range(0, len(vectors), 7):
        cosines, values = store.search(vectors[number], 5)
        assert len(cosines) == 5
        found += float(number) in values.tolist()
        assert cosines.max() <= 1.001
    assert found / len(range(0, len(vectors), 7)) > 0.9


def test_the_oldest_make_room() -> None:
    rng = np.random.default_rng(1)
    capacity = FLAT_ROWS + 200
    store = PromptStore(32, capacity=capacity)
    vectors = unit(rng, 4 * capacity)
    for start in range(0, len(vectors), 61):
        part = vectors[start : start + 61]
        store.add(part, np.arange(start, start + len(part), dtype=float))
    assert len(store) == capacity
    for number in (0, capacity, 2 * capacity):
        assert float(number) not in store.search(vectors[number], 5)[1].tolist()
    newest = [float(n) in store.search(vectors[n], 5)[1].tolist() for n in range(len(vectors) - 200, len(vectors))]
    assert np.mean(newest) > 0.8  # vectors without structure are the hardest case for cells
    assert set(store._index.cell_of[:capacity]) <= set(range(len(store._index.leaders))), "every slot in a cell"


def test_one_prompt_sent_ten_thousand_times_costs_no_more() -> None:
    store = PromptStore(32, capacity=5000)
    vector = unit(np.random.default_rng(2), 1)
    for start in range(0, 10_000, 50):
        store.add(np.repeat(vector, 50, axis=0), np.full(50, float(start)))
    cosines, values = store.search(vector[0], 16)
    assert cosines.min() > 0.999
    assert values.min() >= 9500, "the newest of them"


def test_an_empty_store_and_an_empty_vector_find_nothing() -> None:
    store = PromptStore(32, capacity=10)
    assert len(store.search(np.ones(32, np.float32), 3)[0]) == 0
    store.add(np.ones((1, 32), np.float32), np.zeros(1))
    assert len(store.search(np.zeros(32, np.float32), 3)[0]) == 0


@pytest.mark.parametrize("kind", [Retrieval, Learned])
def test_a_prompt_that_comes_back_is_remembered(kind: type[Retrieval]) -> None:
    """Its length has nothing to do with its words: only memory can know it."""
    jobs, lengths = made_traffic(600, seed=1)
    odd = JobFeatures(tuple(range(9000, 9020)), 2048)
    predictor = kind()
    teach(predictor, [*jobs[:300], odd, odd, odd, *jobs[300:]], [*lengths[:300], 1500, 1500, 1500, *lengths[300:]])
    said = predictor.predict(odd)
    assert said.source == "retrieval" or kind is Retrieval
    assert 900 < said.p50 < 2048


def test_nothing_near_asks_the_regressor() -> None:
    jobs, lengths = made_traffic(500, seed=1)
    predictor = Retrieval()
    teach(predictor, jobs, lengths)
    strange = JobFeatures(tuple(range(70_000, 70_040)), 2048, prompt_tokens=40_000)
    assert predictor.predict(strange).source == "regressor"
    assert predictor.predict(jobs[0]).source == "retrieval"


@pytest.mark.parametrize("name", ["percentile", "regressor", "rank", "retrieval", "learned"])
def test_saved_and_loaded_it_goes_on_the_same(name: str, tmp_path: Path) -> None:
    jobs, lengths = made_traffic(FLAT_ROWS + 400, seed=3)
    first = make_predictor(name, seed=4, capacity=2000)
    teach(first, jobs[:-200], lengths[:-200])
    first.save(tmp_path / "p.npz")
    assert [file.name for file in tmp_path.iterdir()] == ["p.npz"]
    second = make_predictor(name, seed=4, capacity=2000, path=tmp_path / "p.npz")
    for predictor in (first, second):
        teach(predictor, jobs[-200:-100], lengths[-200:-100])
    assert [first.predict(job) for job in jobs[-100:]] == [second.predict(job) for job in jobs[-100:]]


def test_a_missing_sentence_model_is_named() -> None:
    if importlib.util.find_spec("sentence_transformers"):
        pytest.skip("sentence-transformers is installed")
    with pytest.raises(ConfigError, match="embedding=some/model: needs the package sentence-transformers"):
        make_predictor("retrieval", embedding="some/model")


def test_an_embedding_of_ones_own() -> None:
    jobs, lengths = made_traffic(500, seed=5)
    predictor = Retrieval(embedding=Words())
    teach(predictor, jobs[:400], lengths[:400])
    errors = [abs(np.log(predictor.predict(job).p50 / n)) for job, n in zip(jobs[400:], lengths[400:], strict=True)]
    assert np.mean(errors) < 0.4


def test_one_thread_learns_while_another_predicts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under a switch at every chance: what a reader catches half-written must not fail it."""
    monkeypatch.setattr("scheduler.predictor.store.FLAT_ROWS", 100)
    jobs, lengths = made_traffic(500, seed=6)
    predictor = Learned(capacity=300)
    teach(predictor, jobs[:64], lengths[:64])
    for job, length in zip(jobs, lengths, strict=True):
        predictor.observe(job, length)
    said, interval = [], sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    thread = threading.Thread(target=predictor.learn)
    try:
        thread.start()
        while thread.is_alive():
            said.append(predictor.predict(jobs[len(said) % len(jobs)]))
    finally:
        sys.setswitchinterval(interval)
        thread.join(timeout=60)
    assert len(said) > 10
    assert predictor.pending == 0
    assert all(1 <= p.p10 <= p.p50 <= p.p90 <= 2048 for p in said)
