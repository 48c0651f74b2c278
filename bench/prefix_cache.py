"""`bench prefix-cache`: chats of several turns on two small clusters, with the prefix cache and without, and what prefill sent in each.

All chats begin with the same instructions and go on with questions of their own and the server's answers, as chat clients send them: whole,
every turn. Both clusters serve every chat, one after the other, on the embedded model. Sampling is greedy, so the answers should be equal.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any

import httpx
from rich.console import Console
from rich.table import Table

from bench.machine import describe_machine
from bench.synthetic import story_prompts
from bench.words import THINGS
from packhorse.client import first_model, open_client, stream_chat
from packhorse.config import DEFAULT_KV_FORMAT
from packhorse.errors import ConfigError, PackhorseError
from packhorse.launcher import ClusterConfig, LocalCluster

_INSTRUCTIONS = (
    "You tell short stories to small children. Use easy words. Every story has a name for each animal and each child in it, "
    "and it ends well: whoever was sad is happy in the end, whoever was lost is found, and friends share what they have. "
    "Nobody is hurt, and nobody is bad for long. Now and then somebody says something, so that the story can be read aloud. "
    "When you are asked to go on, go on with the same story."
)
_WORDS = (*THINGS, "frog", "duck")


@dataclass(frozen=True)
class PrefixCacheOptions:
    """`users` chat at the same time, `chats` in all. Raises ConfigError for a count below 1."""

    chats: int = 12
    turns: int = 8
    users: int = 3
    decode: int = 1
    max_tokens: int = 64
    kv_format: str = DEFAULT_KV_FORMAT
    placement: str = "predicted"
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("chats", "turns", "users", "decode", "max_tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} is less than 1", param=name)


@dataclass(frozen=True)
class Turn:
    """One answer, and what the server says it took."""

    chat: int
    turn: int
    cached: bool
    text: str
    prompt_tokens: int
    bytes_shipped: int
    bytes_held: int


def run_prefix_cache(options: PrefixCacheOptions) -> dict[str, Any]:
    """Serves the chats. Raises PackhorseError when a cluster does not come up or a request fails."""
    with ExitStack() as stack:
        clients: dict[bool, httpx.Client] = {}
        for cached in (False, True):
            config = ClusterConfig(
                decode=options.decode, port=0, threads=1, kv_format=options.kv_format, placement=options.placement,
                prefix_cache=cached, restart=False,
            )  # fmt: skip
            cluster = stack.enter_context(LocalCluster(config))
            clients[cached] = stack.enter_context(open_client(cluster.url))
        pool = stack.enter_context(ThreadPoolExecutor(options.users))
        chats = list(pool.map(lambda chat: _both(clients, options, chat), range(options.chats)))
    turns = [turn for chat in chats for turn in chat]
    return {
        "machine": describe_machine(),
        "options": asdict(options),
        "turns": [asdict(turn) for turn in turns],
        **summarize(turns),
    }


def _both(clients: dict[bool, httpx.Client], options: PrefixCacheOptions, chat: int) -> list[Turn]:
    return [turn for cached, client in clients.items() for turn in _chat(client, options, chat, cached)]


def _chat(client: httpx.Client, options: PrefixCacheOptions, chat: int, cached: bool) -> list[Turn]:
    """One chat from its first question to its last answer; every prompt holds all that was said before."""
    model, turns = first_model(client), []
    messages: list[dict[str, str]] = []
    for number, question in enumerate(questions(options, chat)):
        messages.append({"role": "user", "content": question})
        text, usage = "", dict[str, Any]()
        for piece in stream_chat(client, model, messages, max_tokens=options.max_tokens, temperature=0):
            text, usage = text + piece.text, dict(piece.usage) or usage
        if "kv_transfer" not in usage:
            raise PackhorseError(f"chat {chat}, turn {number}: the server did not say what it shipped")
        messages.append({"role": "assistant", "content": text or "..."})
        shipped = usage["kv_transfer"]
        turns.append(
            Turn(chat, number, cached, text, usage["prompt_tokens"], shipped["bytes_shipped"], shipped["bytes_held"])
        )
    return turns


def questions(options: PrefixCacheOptions, chat: int) -> list[str]:
    """Of one chat; the same for the same seed."""
    rng = random.Random(f"chats/{options.seed}/{chat}")
    (opening,) = story_prompts(1, rng.randrange(2**31), chat=False)
    first = f"{_INSTRUCTIONS} {' '.join(opening.prompt.split()[:40])}"
    return [first, *(f"Go on with {', '.join(rng.sample(_WORDS, 2))}." for _ in range(options.turns - 1))]


def summarize(turns: Sequence[Turn]) -> dict[str, Any]:
    """By turn and in all: mean tokens of the prompts with the cache, bytes shipped without and with it, and how many answers differ."""
    with_cache = {(turn.chat, turn.turn): turn for turn in turns if turn.cached}
    without = {(turn.chat, turn.turn): turn for turn in turns if not turn.cached}
    numbers = sorted({turn.turn for turn in turns})
    return {
        "by_turn": [
            {"turn": number + 1, **_sums([t for t in turns if t.turn == number])} for number in numbers
        ],
        "total": _sums(turns),
        "answers": len(with_cache),
        "answers_that_differ": sum(with_cache[key].text != without[key].text for key in with_cache),
    }  # fmt: skip


def _sums(turns: Sequence[Turn]) -> dict[str, float]:
    cached, without = [turn for turn in turns if turn.cached], [turn for turn in turns if not turn.cached]
    shipped, before = sum(turn.bytes_shipped for turn in cached), sum(turn.bytes_shipped for turn in without)
    return {
        "prompt_tokens": sum(turn.prompt_tokens for turn in cached) / len(cached),
        "bytes_without": before,
        "bytes_with": shipped,
        "bytes_held": sum(turn.bytes_held for turn in cached),
        "saved": 1 - shipped / before if before else 0.0,
    }


def print_prefix_cache(result: dict[str, Any], console: Console) -> None:
    table = Table("turn", "prompt tokens", "bytes shipped without", "with the cache", "saved")
    for row in [*result["by_turn"], {"turn": "all", **result["total"]}]:
        table.add_row(
            str(row["turn"]), f"{row['prompt_tokens']:.0f}", f"{row['bytes_without']:,}", f"{row['bytes_with']:,}",
            f"{row['saved']:.0%}",
        )  # fmt: skip
    console.print(table)
    options, machine = result["options"], result["machine"]
    console.print(
        f"{options['chats']} chats, {options['users']} at a time, {options['decode']} decode workers, {options['kv_format']} pages, "
        f"placement {options['placement']}; {result['answers_that_differ']} of {result['answers']} answers differ; {machine['cpu']}",
        highlight=False,
        soft_wrap=True,
    )
