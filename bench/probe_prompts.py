"""Prompts that a length probe is trained on: a file's, or wishes for stories such as the embedded model knows. Knows nothing of models."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

from bench.texts import load_texts
from bench.words import THINGS
from model.text import Tokenizer
from packhorse.errors import ConfigError

_WORDS = (*THINGS, "dog", "cat", "bird", "fish")


def make_prompts(
    tokenizer: Tokenizer, count: int, span_tokens: int, max_context_tokens: int, path: Path | None = None, seed: int = 0
) -> list[tuple[int, ...]]:
    """`count` prompts in random order: those of the file, or wishes for stories, most with a number of sentences; all different."""
    rng = random.Random(f"probe/{seed}")
    texts = load_texts(path) if path else [_wish(rng) for _ in range(4 * count)]
    rng.shuffle(texts)
    encode = _encoder(tokenizer)
    prompts = list(dict.fromkeys(tuple(encode(text)) for text in texts))[:count]
    longest = max(map(len, prompts))
    if longest + span_tokens > max_context_tokens:
        raise ConfigError(
            f"span_tokens={span_tokens}: a prompt of {longest} tokens leaves no room for them in {max_context_tokens}",
            param="span_tokens",
        )
    if len(prompts) < count:
        raise ConfigError(f"count={count}: there are only {len(prompts)} different prompts", param="count")
    return prompts


def _encoder(tokenizer: Tokenizer) -> Callable[[str], list[int]]:
    if not tokenizer.has_chat_template:
        return tokenizer.encode
    return lambda text: tokenizer.chat([{"role": "user", "content": text}])


def _wish(rng: random.Random) -> str:
    words = ", ".join(rng.sample(_WORDS, 2))
    if rng.random() < 0.25:
        return f"Tell me a {rng.choice(('short', 'long'))} story about {words}."
    return f"Write {rng.randint(1, 15)} sentences of a story with the words {words}."
