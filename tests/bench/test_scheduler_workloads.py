"""Where simulated requests come from: the built-in mix, files of lengths and of prompts, and the shared data where it is there."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from bench.prefix_trace import read_prompts
from bench.sim_predictor import warm_predictor
from bench.sim_workloads import DATA_VARIABLE, NAMED, covering, find_source, own_times, poisson_times
from packhorse.errors import ConfigError
from scheduler.predictor import JobFeatures
from scheduler.simulator import LLAMA_8B, SimPrompt, model_size
from scheduler.simulator.messages import submit
from transport.page_digest import PageDigests


def prompts_file(folder: Path, count: int = 40) -> Path:
    """Prompts whose first word says how long the answer is."""
    path = folder / "prompts.jsonl"
    rows = [
        {"prompt": f"{'long' if i % 2 else 'short'} question {i}", "output_tokens": 100 if i % 2 else 5}
        for i in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def lengths_file(folder: Path) -> Path:
    path = folder / "trace.csv"
    rows = [f"2023-11-16 18:15:{40 + i:02d}.5,{100 + i},{10 + i}" for i in range(10)]
    path.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n" + "\n".join(rows) + "\n")
    return path


def test_the_synthetic_mix_is_always_the_same() -> None:
    one, two = find_source("synthetic"), find_source("synthetic")
    assert one == two
    assert one.max_tokens == 2048
    assert min(one.output_tokens) >= 1


def test_a_draw_depends_on_its_seed_alone() -> None:
    source = find_source("synthetic")
    draws = [source.draw(50, seed, 100_000)[0].prompt_tokens for seed in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2]


def test_prompts_leave_room_for_their_output() -> None:
    load, _ = find_source("synthetic").draw(500, 0, 4096)
    assert max(load.prompt_tokens) == 4096 - 2048
    with pytest.raises(ConfigError, match="fill the context"):
        find_source("synthetic").draw(5, 0, 2048)


def test_texts_become_token_ids(tmp_path: Path) -> None:
    source = find_source(str(prompts_file(tmp_path)))
    assert source.prompt_tokens == [len(prompt) for prompt in source.prompts] == [3] * 40
    assert source.prompts[0][1] == source.prompts[1][1] != source.prompts[0][0]
    assert (source.output_tokens[:2], source.max_tokens) == ([5, 100], 128)


def test_a_trace_keeps_its_times_and_order(tmp_path: Path) -> None:
    source = find_source(str(lengths_file(tmp_path)))
    load, times = source.draw(4, 3, 100_000, in_order=True)
    start = load.prompt_tokens[0]
    assert load.prompt_tokens == [start + i for i in range(4)]
    assert own_times(times, rate=2.0) == pytest.approx([0.0, 0.5, 1.0, 1.5])
    with pytest.raises(ConfigError, match="there are no 11"):
        source.draw(11, 0, 100_000, in_order=True)


def test_requests_of_an_unordered_trace_keep_their_own_times(tmp_path: Path) -> None:
    path = tmp_path / "late.jsonl"
    rows = [
        {"timestamp": 1000 * t, "input_length": 100 + t, "output_length": 1 + t, "hash_ids": [t]} for t in (5, 1, 9)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = find_source(str(path))
    assert (source.times, source.prompt_tokens, source.output_tokens) == ([1, 5, 9], [101, 105, 109], [2, 6, 10])
    load, _ = source.draw(3, 0, 100_000, in_order=True)
    assert [len(prompt) for prompt in load.prompts] == [101, 105, 109]


def test_prompts_have_times_where_their_file_has(tmp_path: Path) -> None:
    path = tmp_path / "timed.jsonl"
    rows = [{"prompt": f"question {t}", "output_tokens": 5, "arrival_time": t} for t in (3.0, 4.5)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert find_source(str(path)).times == [0.0, 1.5]
    path.write_text(json.dumps(rows[0]) + "\n" + json.dumps({"prompt": "no time", "output_tokens": 5}) + "\n")
    assert find_source(str(path)).times == []


def test_times_that_no_rate_stretches_are_refused() -> None:
    with pytest.raises(ConfigError, match="the 3 requests drawn all come at one time"):
        own_times([2.0, 2.0, 2.0], rate=1.0)
    assert own_times([2.0], rate=1.0) == [0.0]


def test_lengths_have_the_names_that_a_load_test_knows(tmp_path: Path) -> None:
    path = tmp_path / "lengths.jsonl"
    path.write_text('{"input_toks": 7, "output_toks": 3}\n{"input_tokens": 8, "max_tokens": 4}\n')
    source = find_source(str(path))
    assert (source.prompt_tokens, source.output_tokens) == ([7, 8], [3, 4])


def test_more_requests_than_there_are_come_again(tmp_path: Path) -> None:
    load, _ = find_source(str(lengths_file(tmp_path))).draw(25, 0, 100_000)
    assert len(load) == 25
    assert len(set(load.prompt_tokens)) == 10


def blocks_file(folder: Path) -> Path:
    """Six prompts: chats of two and three turns and one of its own; the last goes beyond its blocks."""
    path = folder / "blocks.jsonl"
    turns = [
        (700, [10**18, 2]),
        (1500, [10**18, 3, 4]),
        (900, [7, 8]),
        (1400, [7, 9, 5]),
        (1900, [7, 9, 6, 1]),
        (600, [99]),
    ]
    rows = [
        {"input_length": n, "output_length": 5, "timestamp": 10 * i, "hash_ids": ids}
        for i, (n, ids) in enumerate(turns)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_hash_ids_say_which_prompts_begin_alike(tmp_path: Path) -> None:
    source = find_source(str(blocks_file(tmp_path)))
    load, _ = source.draw(6, 0, 100_000, in_order=True)
    assert load.share_prefixes
    assert [len(prompt) for prompt in load.prompts] == list(load.prompt_tokens) == [700, 1500, 900, 1400, 1900, 600]
    first, second, third, fourth, fifth, last = load.prompts
    assert first[:512] == second[:512] != third[:512]
    assert first[512:513] != second[512:513]
    assert fourth[:1024] == fifth[:1024]
    assert fourth[1024] != fifth[1024]
    assert len({token for prompt in load.prompts for token in prompt}) == 700 + 988 + 900 + 888 + 876 + 600
    assert last[-1] not in set(fifth)  # it has one block, of which it is 88 tokens longer


def test_a_prompt_that_is_drawn_again_is_like_none_of_its_first_turn(tmp_path: Path) -> None:
    source = find_source(str(blocks_file(tmp_path)))
    load, _ = source.draw(18, 0, 100_000)
    assert sorted(load.prompt_tokens) == sorted(source.prompt_tokens * 3)
    first, second, third = ({token for prompt in load.prompts[i : i + 6] for token in prompt} for i in (0, 6, 12))
    assert len(first) == len(second) == len(third)
    assert not first & second
    assert not second & third


def test_a_prompt_of_blocks_is_cut_like_others(tmp_path: Path) -> None:
    source = find_source(str(blocks_file(tmp_path)))
    load, _ = source.draw(6, 0, 1008, in_order=True)
    assert max(load.prompt_tokens) == 1000
    assert [len(prompt) for prompt in load.prompts] == list(load.prompt_tokens)


@pytest.mark.skipif(DATA_VARIABLE not in os.environ, reason=f"{DATA_VARIABLE} is not set")
def test_simulated_prompts_share_the_pages_that_the_trace_says() -> None:
    """Against the digests of `bench prefix-cache --trace`, which need no tokens."""
    source = find_source("mooncake")
    layout = model_size(LLAMA_8B).layout("k4v2")
    told = read_prompts(Path(os.environ[DATA_VARIABLE]) / NAMED["mooncake"])
    pairs: dict[bytes, bytes] = {}
    for index in range(300):
        prompt = SimPrompt(source.prompt(index), 1)
        ours = list(PageDigests(submit(str(index), prompt, 8, 0).job, layout))
        assert len(ours) == len(told[index])
        pairs.update(zip(told[index], ours, strict=True))
        assert [pairs[digest] for digest in told[index]] == ours
    assert len(set(pairs.values())) == len(pairs)


def test_a_warm_predictor_knows_what_the_rest_taught_it(tmp_path: Path) -> None:
    source = find_source(str(prompts_file(tmp_path, 400)))
    assert len(source.rest(10, 0)) == 390
    predictor = warm_predictor("regressor", source, 10, 0)
    assert predictor is not None
    short, long = (predictor.predict(JobFeatures(source.prompts[i], 128)).p50 for i in (0, 1))
    assert short < 0.5 * long
    assert warm_predictor("none", source, 10, 0) is None


def test_times_are_poisson_by_seed() -> None:
    assert poisson_times(100, 5.0, 1) == poisson_times(100, 5.0, 1) != poisson_times(100, 5.0, 2)
    assert covering(512) == 512
    assert covering(513) == 1024


def test_what_cannot_be_found_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(DATA_VARIABLE, raising=False)
    for name, message in (("alpaca", DATA_VARIABLE), ("alpacas", "not one of"), (str(tmp_path / "no.csv"), "no.csv")):
        with pytest.raises(ConfigError, match=message):
            find_source(name)
    with pytest.raises(ConfigError, match="times"):
        own_times([], 1.0)


@pytest.mark.parametrize("name", NAMED)
def test_the_shared_data_are_read(name: str) -> None:
    if not os.environ.get(DATA_VARIABLE):
        pytest.skip(f"{DATA_VARIABLE} is not set")
    source = find_source(name)
    assert len(source) > 3000
    assert max(source.output_tokens) <= source.max_tokens
    assert bool(source.prompts) == (name == "alpaca")
