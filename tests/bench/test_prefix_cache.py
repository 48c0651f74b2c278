"""Chats with and without the prefix cache: the questions, the sums, and the whole command on a small cluster."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from bench.cli import app
from bench.prefix_cache import PrefixCacheOptions, Turn, print_prefix_cache, questions, summarize
from packhorse.errors import ConfigError


def turn(number: int, cached: bool, shipped: int, held: int = 0, text: str = "so") -> Turn:
    return Turn(0, number, cached, text, 100 * (number + 1), shipped, held)


TURNS = [turn(0, False, 1000), turn(1, False, 3000), turn(0, True, 1000), turn(1, True, 500, 2500, "other")]


def test_bytes_are_summed_by_turn_and_in_all() -> None:
    result = summarize(TURNS)
    first, second = result["by_turn"]
    assert (first["turn"], first["bytes_with"], first["saved"]) == (1, 1000, 0.0)
    assert (second["prompt_tokens"], second["bytes_held"], second["saved"]) == (200, 2500, pytest.approx(5 / 6))
    assert (result["total"]["bytes_without"], result["total"]["bytes_with"]) == (4000, 1500)
    assert (result["answers"], result["answers_that_differ"]) == (2, 1)


def test_the_table_says_what_was_measured() -> None:
    console = Console(width=200, record=True)
    options = {"chats": 1, "users": 1, "decode": 2, "kv_format": "raw", "placement": "predicted"}
    print_prefix_cache({**summarize(TURNS), "options": options, "machine": {"cpu": "Some CPU"}}, console)
    text = console.export_text()
    assert "4,000" in text
    assert "62%" in text
    assert "2 decode workers, raw pages, placement predicted; 1 of 2 answers differ; Some CPU" in text


def test_chats_begin_alike_and_go_their_own_ways() -> None:
    options = PrefixCacheOptions(turns=3, seed=4)
    one, two = questions(options, 0), questions(options, 1)
    assert len(one) == len(two) == 3
    assert one != two
    assert one[0][:300] == two[0][:300]
    assert one == questions(options, 0) != questions(PrefixCacheOptions(turns=3, seed=5), 0)


def test_a_count_below_one_is_refused() -> None:
    with pytest.raises(ConfigError, match="users=0 is less than 1"):
        PrefixCacheOptions(users=0)
    result = CliRunner().invoke(app, ["prefix-cache", "--turns", "0"])
    assert result.exit_code == 2
    assert "turns=0 is less than 1" in result.stderr


def test_a_chat_ships_less_with_the_cache_and_says_the_same(tmp_path: Path) -> None:
    file = tmp_path / "run.json"
    flags = [
        "--chats",
        "2",
        "--turns",
        "2",
        "--users",
        "1",
        "--max-tokens",
        "8",
        "--kv-format",
        "raw",
        "--json",
        str(file),
    ]
    result = CliRunner().invoke(app, ["prefix-cache", *flags])
    assert result.exit_code == 0, result.output
    figures = json.loads(file.read_text())
    assert figures["answers_that_differ"] == 0
    total = figures["total"]
    assert total["bytes_with"] + total["bytes_held"] == total["bytes_without"]
    assert total["bytes_held"] > 0.4 * total["bytes_without"]
