"""A trace through the prefix stores: what is held of prompts, by number of workers, size of pools and choice."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from bench.cli import app
from bench.datasets import DatasetError
from bench.prefix_trace import StoreOfWorker, page_digests, read_prompts, replay
from decode.prefix_store import PrefixStore

BLOCK = 512


def prompt(*ids: int, tokens: int | None = None) -> list[bytes]:
    return page_digests(ids, tokens or BLOCK * len(ids))


def test_a_page_is_known_by_the_block_in_which_it_ends() -> None:
    """The first page that reaches into block 1 is page 7: tokens 452 to 515."""
    one, two = prompt(1, 2), prompt(1, 3)
    assert len(one) == (2 * BLOCK - 4) // 64 == 15
    assert [a == b for a, b in zip(one, two, strict=True)] == [True] * 7 + [False] * 8
    assert len(set(one)) == 15
    assert prompt(1, tokens=67) == []
    assert len(prompt(1, tokens=68)) == 1
    assert len(prompt(1, tokens=5000)) == 7  # no more than the blocks cover


def test_what_is_held_depends_on_room_and_on_who_is_asked() -> None:
    a, b = prompt(1, 2), prompt(7, 8)
    prompts = [a, b, a, b, a, b, a]
    assert replay(prompts, 1, 30, "turns")["pages_held"] == 5 * 15
    assert replay(prompts, 1, 15, "turns")["pages_held"] == 0  # each gives up the other
    assert replay(prompts, 2, 15, "turns")["pages_held"] == 5 * 15
    by_turns, by_holder = (replay([a, a, b, b], 2, 30, choice) for choice in ("turns", "holder"))
    assert (by_turns["pages_held"], by_holder["pages_held"]) == (0, 2 * 15)
    assert by_holder["held_share"] == 0.5


def test_a_prompt_larger_than_the_pool_changes_nothing() -> None:
    worker = StoreOfWorker(7, PrefixStore())
    assert worker.serve(prompt(1)) == 0
    assert worker.serve(prompt(1, 2)) == 7
    assert worker.serve(prompt(3, 4)) == 0
    assert worker.serve(prompt(1)) == 7


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_the_command_writes_its_records(tmp_path: Path) -> None:
    trace = write(tmp_path / "t.jsonl", *({"input_length": 1024, "hash_ids": [1, 2]} for _ in range(4)))
    file = tmp_path / "out.json"
    flags = ["--trace", str(trace), "--workers", "1", "2", "--pool-pages", "20", "--json", str(file)]
    result = CliRunner().invoke(app, ["prefix-cache", *flags])
    assert result.exit_code == 0, result.output
    runs = json.loads(file.read_text())["runs"]
    assert [(run["workers"], run["choice"], run["pages_held"]) for run in runs] == [
        (1, "turns", 45), (2, "turns", 30), (2, "holder", 45),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("rows", "flags", "message"),
    [
        ([{"input_length": 9}], [], "t.jsonl, line 1: has no integer input_length with a list of integer hash_ids"),
        ([], [], "holds no requests"),
        ([{"input_length": 9, "hash_ids": [1]}], ["--workers", "0"], "workers=0 is less than 1"),
    ],
)
def test_bad_input_is_named(tmp_path: Path, rows: list[object], flags: list[str], message: str) -> None:
    trace = write(tmp_path / "t.jsonl", *rows)
    result = CliRunner().invoke(app, ["prefix-cache", "--trace", str(trace), *flags])
    assert result.exit_code == 2
    assert message in result.stderr


def test_flags_of_the_trace_need_one() -> None:
    result = CliRunner().invoke(app, ["prefix-cache", "--workers", "2"])
    assert result.exit_code == 2
    assert "go with --trace" in result.stderr


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"nothing\.jsonl"):
        read_prompts(tmp_path / "nothing.jsonl")


@pytest.mark.skipif("PACKHORSE_DATA" not in os.environ, reason="PACKHORSE_DATA is not set")
def test_a_real_trace_holds_as_much_as_it_repeats() -> None:
    """With all the room there is, what is held is every page but the first of its kind."""
    prompts = read_prompts(Path(os.environ["PACKHORSE_DATA"]) / "traces/mooncake_synthetic_trace.jsonl.gz")[:500]
    pages = sum(map(len, prompts))
    kinds = len({digest for digests in prompts for digest in digests})
    assert replay(prompts, 1, pages, "turns")["pages_held"] == pages - kinds
