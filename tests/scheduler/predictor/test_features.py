from __future__ import annotations

import numpy as np
import pytest

from scheduler.predictor.base import JobFeatures
from scheduler.predictor.features import (
    BUCKETS,
    HEAD_TOKENS,
    LENGTH_COLUMNS,
    TAIL_TOKENS,
    Featurizer,
    buckets,
    length_values,
    text_ids,
)


def of(*tokens: int) -> np.ndarray:
    return buckets(JobFeatures(tokens))


def shared(a: np.ndarray, b: np.ndarray) -> float:
    return len(np.intersect1d(a, b)) / max(len(a), len(b))


def test_equal_prompts_have_equal_buckets_and_others_do_not() -> None:
    assert of(1, 2, 3, 4).tolist() == of(1, 2, 3, 4).tolist()
    assert shared(of(*range(20)), of(*range(500, 520))) < 0.05
    assert shared(of(*range(20)), of(*range(19), 77)) > 0.7


def test_order_and_place_count() -> None:
    assert of(1, 2, 3).tolist() != of(3, 2, 1).tolist()
    assert shared(of(5, *range(100, 140)), of(*range(100, 140), 5)) < 0.95


@pytest.mark.parametrize("size", [1, 2, 3, 7, 8, 9, HEAD_TOKENS + TAIL_TOKENS + 1])
def test_prompts_of_every_size(size: int) -> None:
    found = of(*range(size))
    assert len(found)
    assert found.max() < BUCKETS
    assert (np.diff(found.astype(np.int64)) > 0).all()


def test_of_a_long_prompt_head_and_tail_are_read() -> None:
    middle = HEAD_TOKENS + 100
    tokens = list(range(5000))
    assert of(*tokens).tolist() == of(*tokens[:middle], 99_999, *tokens[middle + 1 :]).tolist()
    assert of(*tokens).tolist() != of(99_999, *tokens[1:]).tolist()
    assert of(*tokens).tolist() != of(*tokens[:-1], 99_999).tolist()


def test_large_and_negative_ids_do_not_overflow() -> None:
    assert len(of(2**31, 2**63 - 1, -1, 0))


def test_rows() -> None:
    featurizer = Featurizer()
    seen, unseen = of(1, 2, 3, 4, 5), of(900, 901)
    featurizer.count([seen, of(1, 2)])
    rows = featurizer.rows([seen, unseen, np.empty(0, np.uint32)], [5, 2, 100])
    assert len(rows) == 3
    assert rows.row_numbers.tolist() == [0] * (len(seen) + 16) + [1] * (len(unseen) + 16) + [2] * LENGTH_COLUMNS
    grams = rows.values[: len(seen)]
    assert np.linalg.norm(grams) == pytest.approx(1, rel=1e-5)
    assert not rows.values[len(seen) + 16 : len(seen) + 16 + len(unseen)].any(), "what was never seen weighs nothing"
    assert rows.values[-LENGTH_COLUMNS:].tolist() == length_values(100).tolist()


def test_rare_ngrams_weigh_more() -> None:
    featurizer = Featurizer()
    common, rare = of(1), of(2)
    featurizer.count([common] * 50 + [np.union1d(common, rare)])
    both = np.union1d(common, rare)
    weights = featurizer.rows([both], [2]).values[: len(both)]
    assert weights[np.isin(both, rare)].min() > weights[np.isin(both, common)].max()


def test_text_ids() -> None:
    assert text_ids("Write a Poem.\n") == text_ids("write  a poem .\n")
    assert len(text_ids("Zähle: 1, 2\n")) == 6
    assert text_ids("") == ()
