"""`packhorse bench prefix-cache`: its flags."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bench.exits import config_errors
from packhorse.config import DEFAULT_KV_FORMAT


def prefix_cache(
    chats: Annotated[int, typer.Option(help="chats in all")] = 12,
    turns: Annotated[int, typer.Option(help="questions of a chat")] = 8,
    users: Annotated[int, typer.Option(help="chats at the same time")] = 3,
    decode: Annotated[int, typer.Option(help="decode workers")] = 1,
    max_tokens: Annotated[int, typer.Option(help="most tokens of an answer")] = 64,
    kv_format: Annotated[str, typer.Option(help="page format")] = DEFAULT_KV_FORMAT,
    placement: Annotated[str, typer.Option(help="how a pair of workers is chosen")] = "least-loaded",
    seed: Annotated[int, typer.Option(help="of the questions")] = 0,
    json: Annotated[Path | None, typer.Option(help="write the figures and one record per answer here")] = None,
) -> None:
    """Chats of several turns with the prefix cache and without it: bytes of KV cache that prefill sent, turn by turn."""
    from rich.console import Console

    from bench.prefix_cache import PrefixCacheOptions, print_prefix_cache, run_prefix_cache
    from bench.report import check_writable, write_json

    with config_errors():
        options = PrefixCacheOptions(
            chats=chats, turns=turns, users=users, decode=decode, max_tokens=max_tokens, kv_format=kv_format,
            placement=placement, seed=seed,
        )  # fmt: skip
        if json:
            check_writable("json", json)
        result = run_prefix_cache(options)
        print_prefix_cache(result, Console())
        if json:
            write_json(json, result)
