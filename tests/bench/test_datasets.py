"""Datasets: every kind that is understood, and errors that name file, line and fault."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import pytest

from bench.datasets import DatasetError, RequestBuilder, load_dataset, repeat
from bench.synthetic import story_prompts
from bench.workload import DEFAULT_MAX_TOKENS, PlannedRequest

BUILDER = RequestBuilder(seed=0)


def load_rows(folder: Path, *rows: object, builder: RequestBuilder = BUILDER) -> list[PlannedRequest]:
    path = folder / "data.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return load_dataset(path, 100, builder)


@pytest.mark.parametrize(
    ("row", "prompt", "max_tokens"),
    [
        ({"prompt": "a", "max_tokens": 5}, "a", 5),
        ({"prompt": "a", "output_tokens": {"t0.7": 9, "t0.0": 7}}, "a", 7),
        ({"prompt": "a", "output": "x" * 41}, "a", 11),
        ({"instruction": "b", "response": "12345678"}, "b", 2),
        ({"question": "c", "answer": "1234"}, "c", 1),
        ({"turns": ["d", "e"]}, "d", DEFAULT_MAX_TOKENS),
        ({"prompt": "two\u2028lines", "max_tokens": 1}, "two\u2028lines", 1),
    ],
)
def test_jsonl_kinds(tmp_path: Path, row: dict[str, object], prompt: str, max_tokens: int) -> None:
    assert load_rows(tmp_path, row, row) == [PlannedRequest(prompt, max_tokens)] * 2


def test_lengths_become_seeded_words(tmp_path: Path) -> None:
    first, second = load_rows(tmp_path, *[{"input_length": 30, "output_length": 4}] * 2)
    assert len(first.prompt.split()) == 30
    assert first.prompt != second.prompt
    assert load_rows(tmp_path, {"input_length": 30, "output_length": 4}) == [first]
    assert load_rows(tmp_path, {"input_length": 30, "output_length": 4}, builder=RequestBuilder(1)) != [first]


def test_caps(tmp_path: Path) -> None:
    builder = RequestBuilder(0, max_tokens=3, max_prompt_tokens=5)
    (request,) = load_rows(tmp_path, {"input_length": 30, "output_length": 4}, builder=builder)
    assert (len(request.prompt.split()), request.max_tokens) == (5, 3)


def test_same_hash_ids_share_text(tmp_path: Path) -> None:
    rows = [{"timestamp": 0, "input_length": 600, "output_length": 1, "hash_ids": ids} for ids in ([1, 2], [1, 3])]
    first, second = (request.prompt.split() for request in load_rows(tmp_path, *rows))
    assert len(first) == 600
    assert first[:512] == second[:512]
    assert first[512:] != second[512:]


def test_times_and_grouped_requests(tmp_path: Path) -> None:
    group = {"timestamp": 3000, "requests": [{"prompt": "x", "Output Length": 2}, {"prompt": "y", "Output Length": 3}]}
    later = {"timestamp": 4500, "requests": [{"prompt": "z", "Output Length": 4}]}
    assert load_rows(tmp_path, group, later) == [
        PlannedRequest("x", 2, 0.0), PlannedRequest("y", 3, 0.0), PlannedRequest("z", 4, 1.5)
    ]  # fmt: skip


def test_csv_trace(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,12,44\n2023-11-16 18:15:47.1805900,3,109\n"
    )
    requests = load_dataset(path, 10, BUILDER)
    assert [(len(r.prompt.split()), r.max_tokens) for r in requests] == [(12, 44), (3, 109)]
    assert requests[1].arrival_seconds == pytest.approx(0.5, abs=1e-6)


def test_gzip_and_count(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"prompt": "a", "max_tokens": 1}\n' * 5))
    assert len(load_dataset(path, 3, BUILDER)) == 3
    assert len(repeat(load_dataset(path, 3, BUILDER), 7)) == 7


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("bad.jsonl", '{"prompt": "a"}\n{"prompt": \n', r"bad\.jsonl, line 2: is not JSON"),
        ("bad.jsonl", '{"prompt": "a"}\n\n[1]\n', r"line 3: is a list, not an object"),
        ("bad.jsonl", '{"text": "a"}\n', r"line 1: has none of prompt"),
        ("bad.jsonl", '{"prompt": 5}\n', r"line 1: prompt=5 is not a text"),
        ("bad.jsonl", '{"prompt": "a", "max_tokens": "many"}\n', r"line 1: max_tokens='many' is not an integer"),
        ("bad.jsonl", '{"prompt": "a", "timestamp": "noon"}\n', r"line 1: timestamp='noon' is not a number"),
        ("bad.jsonl", '{"input_length": 0}\n', r"line 1: input_length=0 is not an integer of at least 1"),
        ("bad.jsonl", "", r"holds no requests"),
        ("bad.csv", "a,b\n1,2\n", r"bad\.csv, line 1: needs the columns ContextTokens"),
        ("bad.csv", "ContextTokens,GeneratedTokens\n1,2\n1\n", r"line 3: has 1 columns, the header 2"),
        ("bad.csv", "ContextTokens,GeneratedTokens\n1,2\nx,2\n", r"line 3: .*'x'"),
        ("bad.csv", "TIMESTAMP,ContextTokens,GeneratedTokens\nnoon,1,2\n", r"line 2: TIMESTAMP='noon' is not"),
        ("bad.csv", "ContextTokens,GeneratedTokens\n1.5,2\n", r"line 2: input_tokens='1.5' is not an integer"),
        ("bad.csv", "ContextTokens,GeneratedTokens\n1,inf\n", r"line 2: output_tokens='inf' is not a finite number"),
        ("bad.csv", "TIMESTAMP,ContextTokens,GeneratedTokens\nnan,1,2\n", r"line 2: TIMESTAMP='nan' is not a finite"),
        ("bad.jsonl", '{"prompt": "a", "timestamp": NaN}\n', r"line 1: timestamp=nan is not a finite number"),
        ("bad.parquet", "x", r"unknown kind"),
        ("bad.jsonl.gz", "not gzip", r"bad\.jsonl\.gz: "),
    ],
)
def test_errors_name_file_line_and_fault(tmp_path: Path, name: str, content: str, message: str) -> None:
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(DatasetError, match=message) as caught:
        load_dataset(path, 100, BUILDER)
    assert str(path) in str(caught.value)


def test_a_damaged_archive_is_named(tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl.gz"
    path.write_bytes(gzip.compress(b"")[:10] + b"no deflated data")
    with pytest.raises(DatasetError, match=r"bad\.jsonl\.gz: Error -3 while decompressing"):
        load_dataset(path, 1, BUILDER)


def test_missing_file_and_bad_utf8(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="No such file"):
        load_dataset(tmp_path / "none.jsonl", 1, BUILDER)
    path = tmp_path / "latin.jsonl"
    path.write_bytes(b'{"prompt": "ok"}\n{"prompt": "\xe9"}\n')
    with pytest.raises(DatasetError, match="line 2: is not UTF-8"):
        load_dataset(path, 5, BUILDER)


def test_synthetic_prompts_follow_their_distribution() -> None:
    requests = story_prompts(400, seed=3, chat=False)
    assert requests == story_prompts(400, seed=3, chat=False)
    assert requests != story_prompts(400, seed=4, chat=False)
    outputs = sorted(request.max_tokens for request in requests)
    words = sorted(len(request.prompt.split()) for request in requests)
    assert 4 <= outputs[0] < outputs[-1] <= 256
    assert 45 <= outputs[200] <= 68  # the median, 56, within four standard errors (1.25 * 0.7 / sqrt(400) each)
    assert 55 <= words[200] <= 90  # 90 tokens at 1.25 per word
    assert all("sentences of a story" in request.prompt for request in story_prompts(20, seed=3, chat=True))


DATA = os.environ.get("PACKHORSE_DATA")


@pytest.mark.skipif(not DATA, reason="PACKHORSE_DATA is not set")
@pytest.mark.parametrize(
    "name",
    [
        "traces/azure2023_conv_first_half.csv", "traces/azure2023_code.csv", "traces/mooncake_synthetic_trace.jsonl.gz",
        "traces/vidur_arxiv_summarization_lengths.csv", "traces/aibrix_8min_up_and_down.jsonl.gz",
        "traces/vllm_measured_rtx4090/requests.jsonl", "lengths/vicuna7b_alpaca_train.jsonl.gz", "lengths/alpaca.jsonl.gz",
        "lengths/dolly_subset_6400.jsonl.gz", "prompts/gsm8k_train.jsonl.gz", "prompts/HumanEval.jsonl.gz",
        "prompts/vicuna_bench_question.jsonl",
    ],
)  # fmt: skip
def test_real_datasets_load(name: str) -> None:
    requests = load_dataset(Path(DATA or "") / name, 10**9, RequestBuilder(0, max_prompt_tokens=8))
    assert len(requests) >= 80
    assert all(request.prompt and request.max_tokens >= 1 for request in requests)
