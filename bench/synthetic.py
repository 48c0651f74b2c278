"""Seeded prompts for the embedded model: openings of small stories, and requests to tell one.

The distribution, before clipping (tokens are estimated at 1.25 per word, punctuation included):
    prompt tokens  log-normal, median 90, sigma 0.8, clipped to 16..600
    output tokens  log-normal, median 56, sigma 0.7, clipped to 4..256
so that a prompt and its output fit the embedded model's context of 1,024 tokens. This file knows nothing of arrival times.
"""

from __future__ import annotations

import random

from bench.words import THINGS
from bench.workload import PlannedRequest, output_limit

TOKENS_PER_WORD = 1.25
PROMPT_MEDIAN, PROMPT_SIGMA, PROMPT_RANGE = 90, 0.8, (16, 600)
OUTPUT_MEDIAN, OUTPUT_SIGMA, OUTPUT_RANGE = 56, 0.7, (4, 256)

_NAMES = ["Lily", "Tom", "Ben", "Anna", "Max", "Sue", "Tim", "Mia", "Sam", "Lucy"]
_PLACES = ["park", "garden", "forest", "farm", "lake", "house", "school", "beach", "market", "hill"]
_ANIMALS = ["dog", "cat", "bird", "fish", "bear", "rabbit", "duck", "frog", "horse", "mouse"]
_MOODS = ["happy", "sad", "excited", "scared", "proud", "tired", "surprised", "glad"]
_OPENINGS = (
    "Once upon a time, there was a little {animal} who lived near the {place}.",
    "One day, {name} went to the {place} with a big {thing}.",
    "{name} had a {animal} and a red {thing}.",
)
_SENTENCES = (
    "{name} wanted to play with the {thing}, but it was too high.",
    "The {animal} was very {mood} and ran to the {place}.",
    '"Look at my {thing}!" said {name}.',
    "They walked to the {place} and saw a {animal}.",
    "{name} felt {mood} and gave the {thing} to the {animal}.",
    "Mom said they could go to the {place} after lunch.",
    "The {thing} fell down and the {animal} picked it up.",
    "{name} and the {animal} sat under a tree and ate some food.",
)


def story_prompts(count: int, seed: int, chat: bool, max_tokens: int | None = None) -> list[PlannedRequest]:
    """`count` requests, the same for the same seed; `chat`: they end in a wish for a story, as the model was trained on."""
    rng = random.Random(f"stories/{seed}")
    return [_story_prompt(rng, chat, max_tokens) for _ in range(count)]


def _story_prompt(rng: random.Random, chat: bool, max_tokens: int | None) -> PlannedRequest:
    prompt_tokens = _length(rng, PROMPT_MEDIAN, PROMPT_SIGMA, PROMPT_RANGE)
    output_tokens = _length(rng, OUTPUT_MEDIAN, OUTPUT_SIGMA, OUTPUT_RANGE)
    text = _opening(rng, prompt_tokens)
    if chat:
        text = (
            f"{text} Write {rng.randint(2, 12)} sentences of a story with the words {', '.join(rng.sample(THINGS, 2))}."
        )
    return PlannedRequest(text, output_limit(output_tokens, max_tokens))


def _length(rng: random.Random, median: int, sigma: float, bounds: tuple[int, int]) -> int:
    low, high = bounds
    return round(min(max(median * rng.lognormvariate(0, sigma), low), high))


def _opening(rng: random.Random, num_tokens: int) -> str:
    sentences = [_fill(rng, rng.choice(_OPENINGS))]
    words = len(sentences[0].split())
    while (words + 5) * TOKENS_PER_WORD < num_tokens:
        sentences.append(_fill(rng, rng.choice(_SENTENCES)))
        words += len(sentences[-1].split())
    return " ".join(sentences)


def _fill(rng: random.Random, template: str) -> str:
    return template.format(
        name=rng.choice(_NAMES),
        place=rng.choice(_PLACES),
        thing=rng.choice(THINGS),
        animal=rng.choice(_ANIMALS),
        mood=rng.choice(_MOODS),
    )
