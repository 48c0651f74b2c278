"""Lookups: the same for a seed, well formed, and long enough to fill pages."""

from __future__ import annotations

import re

import pytest

from bench.recall import MAX_PAIRS, MIN_PAIRS, make_lookups, sentences
from bench.words import WORDS

FILLERS = sentences(
    ["One day, Lily went to the park.\nShe saw a dog! It was big. " + "x" * 100 + ".", "Tom was very happy today."]
)


def test_sentences_are_split_and_bounded() -> None:
    assert FILLERS == ["One day, Lily went to the park.", "Tom was very happy today."]


def test_seed_fixes_the_lookups() -> None:
    assert make_lookups(5, FILLERS, seed=1) == make_lookups(5, FILLERS, seed=1)
    assert make_lookups(5, FILLERS, seed=1) != make_lookups(5, FILLERS, seed=2)


def test_words_are_distinct() -> None:
    assert len(set(WORDS)) == len(WORDS) >= 2 * MAX_PAIRS


def test_lookups_are_well_formed() -> None:
    for lookup in make_lookups(50, FILLERS, seed=0):
        context = lookup.context
        for filler in FILLERS:
            context = context.replace(f" {filler}", "")
        pairs = re.findall(r" (\w+) (\w+)\.", context)
        assert "".join(f" {key} {value}." for key, value in pairs) == context
        assert MIN_PAIRS <= len(pairs) <= MAX_PAIRS
        assert dict(pairs)[lookup.key] == lookup.value
        assert len({word for pair in pairs for word in pair}) == 2 * len(pairs), "every word once: the answer is unique"
        assert lookup.message.endswith(f"\nWhich word follows {lookup.key}?")


def test_sentences_are_needed() -> None:
    with pytest.raises(ValueError, match="sentences"):
        make_lookups(1, [], seed=0)
    assert make_lookups(0, [], seed=0) == []
