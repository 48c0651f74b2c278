"""Lookups in a long context: which word followed this one? They fail visibly when K is quantized badly.

A context states pairs of words (" lily kite.") among unrelated sentences; one question names the first word of a pair, the answer
is the pair, and its second word is what counts. After `recall_chat` in the embedded model's training recipe.
This file knows nothing of models or tokens.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable
from dataclasses import dataclass

from bench.words import WORDS

MIN_PAIRS, MAX_PAIRS = 10, 40
MIN_SENTENCES, MAX_SENTENCES = 4, 20


@dataclass(frozen=True)
class Lookup:
    """One question on one context; the answer is " key value."."""

    context: str
    key: str
    value: str

    @property
    def message(self) -> str:
        """What the user says: the context, and the question on a line of its own."""
        return f"{self.context}\nWhich word follows {self.key}?"


def sentences(texts: Iterable[str]) -> list[str]:
    """The sentences of `texts` of 21 to 89 characters, in order."""
    parts = (part for text in texts for part in re.split(r"(?<=[.!?])\s+", text.replace("\n", " ")))
    return [part for part in parts if 20 < len(part) < 90]


def make_lookups(count: int, fillers: list[str], seed: int) -> list[Lookup]:
    """`count` lookups, each in a context of its own, the same for the same seed. Raises ValueError without fillers."""
    if count and not fillers:
        raise ValueError("no sentences to put between the word pairs")
    rng = random.Random(f"recall/{seed}")
    return [_make_lookup(fillers, rng) for _ in range(count)]


def _make_lookup(fillers: list[str], rng: random.Random) -> Lookup:
    num_pairs = rng.randint(MIN_PAIRS, MAX_PAIRS)
    words = rng.sample(WORDS, 2 * num_pairs)
    pairs = list(zip(words[::2], words[1::2], strict=True))
    lines = [f" {key} {value}." for key, value in pairs]
    for _ in range(rng.randint(MIN_SENTENCES, MAX_SENTENCES)):
        lines.insert(rng.randint(0, len(lines)), " " + rng.choice(fillers))
    key, value = rng.choice(pairs)
    return Lookup("".join(lines), key, value)
