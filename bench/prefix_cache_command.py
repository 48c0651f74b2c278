"""`packhorse bench prefix-cache`: its flags."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from bench.exits import config_errors
from packhorse.config import DEFAULT_KV_FORMAT
from packhorse.errors import ConfigError


def prefix_cache(
    chats: Annotated[int, typer.Option(help="chats in all")] = 12,
    turns: Annotated[int, typer.Option(help="questions of a chat")] = 8,
    users: Annotated[int, typer.Option(help="chats at the same time")] = 3,
    decode: Annotated[int, typer.Option(help="decode workers")] = 1,
    max_tokens: Annotated[int, typer.Option(help="most tokens of an answer")] = 64,
    kv_format: Annotated[str, typer.Option(help="page format")] = DEFAULT_KV_FORMAT,
    placement: Annotated[str, typer.Option(help="how a pair of workers is chosen")] = "predicted",
    seed: Annotated[int, typer.Option(help="of the questions")] = 0,
    trace: Annotated[
        Path | None, typer.Option(help="no cluster: a trace with hash_ids (JSONL) through the stores of --workers")
    ] = None,
    workers: Annotated[list[int] | None, typer.Option(help="with --trace: decode workers; default 1 8")] = None,
    pool_pages: Annotated[list[int] | None, typer.Option(help="with --trace: pages of each; default 30000")] = None,
    json: Annotated[Path | None, typer.Option(help="write the figures and one record per answer here")] = None,
) -> None:
    """Chats of several turns with the prefix cache and without it: bytes of KV cache that prefill sent, turn by turn."""
    from bench.console import table_console
    from bench.prefix_cache import PrefixCacheOptions, print_prefix_cache, run_prefix_cache
    from bench.report import check_writable, write_json

    with config_errors():
        if json:
            check_writable("json", json)
        if trace:
            result = _replay(trace, workers or [1, 8], pool_pages or [30_000])
            if json:
                write_json(json, result)
            return
        if workers or pool_pages:
            raise ConfigError("--workers and --pool-pages go with --trace", param="trace")
        options = PrefixCacheOptions(
            chats=chats, turns=turns, users=users, decode=decode, max_tokens=max_tokens, kv_format=kv_format,
            placement=placement, seed=seed,
        )  # fmt: skip
        result = run_prefix_cache(options)
        print_prefix_cache(result, table_console())
        if json:
            write_json(json, result)


def _replay(trace: Path, workers: list[int], pool_pages: list[int]) -> dict[str, Any]:
    from bench.console import table_console
    from bench.prefix_trace import print_prefix_trace, run_prefix_trace

    for name, values in (("workers", workers), ("pool_pages", pool_pages)):
        if min(values) < 1:
            raise ConfigError(f"{name}={min(values)} is less than 1", param=name)
    result = run_prefix_trace(trace, workers, pool_pages)
    print_prefix_trace(result, table_console())
    return result
