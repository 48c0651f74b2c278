"""Datasets for the load generator: prompts with output lengths, and traces of lengths and times.

    .jsonl, .jsonl.gz   one object per line, lines ending in "\\n" only. Keys that are understood, in this order:
                        prompt:  prompt | instruction | question | turns (the first)
                        or its length in tokens: input_length | input_toks | input_tokens | prompt_tokens
                        output:  max_tokens | output_tokens | output_length | output_toks | completion_tokens, an integer or
                                 an object of integers per temperature (the lowest one counts); else the text of output |
                                 response | answer | canonical_solution, at 4 characters per token
                        time:    timestamp (milliseconds) | arrival_time (seconds)
                        prefix:  hash_ids: blocks of 512 tokens; the same id gives the same text
                        requests: a list of {prompt, "Output Length"} that arrive together at `timestamp`
    .csv                ContextTokens, GeneratedTokens, TIMESTAMP; or num_prefill_tokens, num_decode_tokens

Where a dataset gives lengths alone, prompts are seeded words of about that many tokens. Bad input raises DatasetError, which
names the file and the line. This file knows nothing of arrival processes or HTTP.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
import zlib
from collections.abc import Callable, Iterator
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any

from bench.words import seeded_words
from bench.workload import PlannedRequest, output_limit
from packhorse.errors import ConfigError

PROMPT_KEYS = ("prompt", "instruction", "question", "turns")
PROMPT_LENGTH_KEYS = ("input_length", "input_toks", "input_tokens", "prompt_tokens")
OUTPUT_LENGTH_KEYS = (
    "max_tokens", "output_tokens", "output_length", "output_toks", "completion_tokens", "Output Length"
)  # fmt: skip
OUTPUT_TEXT_KEYS = ("output", "response", "answer", "canonical_solution")
CHARACTERS_PER_TOKEN = 4
HASH_BLOCK_TOKENS = 512
Row = dict[str, Any]


class DatasetError(ConfigError):
    """A dataset that cannot be used: names the file, the line and what is wrong."""

    code = "bad_dataset"


class RequestBuilder:
    """Makes planned requests of rows: caps lengths, and writes the text where a row gives its length alone."""

    def __init__(self, seed: int, max_tokens: int | None = None, max_prompt_tokens: int | None = None) -> None:
        self.seed = seed
        self.max_tokens = max_tokens
        self.max_prompt_tokens = max_prompt_tokens

    def build(self, row: Row, number: int, arrival_seconds: float | None) -> PlannedRequest:
        """The request of row `number` (it seeds the words). Raises ValueError that says what is missing or wrong."""
        return PlannedRequest(
            self._prompt(row, number), output_limit(_output_tokens(row), self.max_tokens), arrival_seconds
        )

    def _prompt(self, row: Row, number: int) -> str:
        key = _first_key(row, PROMPT_KEYS)
        if key is not None:
            value = row[key][0] if key == "turns" and isinstance(row[key], list) and row[key] else row[key]
            if not isinstance(value, str) or not value:
                raise ValueError(f"{key}={_shown(value)} is not a text")
            return value
        length_key = _first_key(row, PROMPT_LENGTH_KEYS)
        if length_key is None:
            raise ValueError(f"has none of {', '.join(PROMPT_KEYS + PROMPT_LENGTH_KEYS)}")
        tokens = _count(row, length_key, least=1)
        tokens = min(tokens, self.max_prompt_tokens or tokens)
        blocks = row.get("hash_ids")
        if isinstance(blocks, list) and blocks:
            return self._shared_blocks(blocks, tokens)
        return seeded_words(tokens, self.seed, number)

    def _shared_blocks(self, hash_ids: list[Any], tokens: int) -> str:
        texts = []
        for block in hash_ids:
            texts.append(seeded_words(min(HASH_BLOCK_TOKENS, tokens), self.seed, "block", block))
            tokens -= HASH_BLOCK_TOKENS
            if tokens <= 0:
                break
        return " ".join(texts)


def load_dataset(path: Path, count: int, builder: RequestBuilder) -> list[PlannedRequest]:
    """The first `count` requests of the file, in its order; fewer where it is shorter.

    Raises DatasetError for a file that is missing, empty, of an unknown kind, or malformed at a line.
    """
    name = path.name.removesuffix(".gz")
    if name.endswith(".jsonl"):
        rows = _read_jsonl
    elif name.endswith(".csv"):
        rows = _read_csv
    else:
        raise DatasetError(f"{path}: unknown kind of dataset; .jsonl, .jsonl.gz, .csv and .csv.gz are known")
    requests = list(islice(_build_all(path, rows, builder), count))
    if not requests:
        raise DatasetError(f"{path}: holds no requests")
    return requests


def rows_of(path: Path) -> Iterator[tuple[int, Row]]:
    """(line, object) of every request in a JSONL file. Raises DatasetError for a file that is missing or malformed."""
    return ((line, row) for line, row, _ in _read_jsonl(path))


def repeat(requests: list[PlannedRequest], count: int) -> list[PlannedRequest]:
    """`count` requests: the list again and again."""
    return [requests[i % len(requests)] for i in range(count)]


def _build_all(
    path: Path, read: Callable[[Path], Iterator[tuple[int, Row, float | None]]], builder: RequestBuilder
) -> Iterator[PlannedRequest]:
    start: float | None = None
    for line, row, seconds in read(path):
        if seconds is not None:
            start = seconds if start is None else start
            seconds -= start
        try:
            yield builder.build(row, line, seconds)
        except ValueError as error:
            raise DatasetError(f"{path}, line {line}: {error}") from error


def _open(path: Path) -> io.BytesIO:
    try:
        data = path.read_bytes()
        return io.BytesIO(gzip.decompress(data) if path.name.endswith(".gz") else data)
    except (OSError, EOFError, zlib.error) as error:
        raise DatasetError(f"{path}: {getattr(error, 'strerror', None) or error}") from error


def _decode(path: Path, line: int, data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path}, line {line}: is not UTF-8 ({error.reason} at byte {error.start})") from error


def _read_jsonl(path: Path) -> Iterator[tuple[int, Row, float | None]]:
    """Lines split on "\\n" alone (texts may hold U+2028); a line with `requests` gives several rows."""
    for line, data in enumerate(_open(path), start=1):
        text = _decode(path, line, data)
        if not text.strip():
            continue
        try:
            row = json.loads(text)
        except json.JSONDecodeError as error:
            raise DatasetError(f"{path}, line {line}: is not JSON: {error.msg} at column {error.colno}") from error
        if not isinstance(row, dict):
            raise DatasetError(f"{path}, line {line}: is a {type(row).__name__}, not an object")
        try:
            seconds = _json_seconds(row)
            members = _members(row)
        except ValueError as error:
            raise DatasetError(f"{path}, line {line}: {error}") from error
        for member in members:
            yield line, member, seconds


def _members(row: Row) -> list[Row]:
    members = row.get("requests")
    if members is None:
        return [row]
    if not isinstance(members, list) or not all(isinstance(member, dict) for member in members):
        raise ValueError(f"requests={_shown(members)} is not a list of objects")
    return members


def _json_seconds(row: Row) -> float | None:
    for key, per_second in (("timestamp", 1000.0), ("arrival_time", 1.0)):
        if key in row:
            if isinstance(row[key], bool) or not isinstance(row[key], int | float):
                raise ValueError(f"{key}={_shown(row[key])} is not a number")
            return _number(key, row[key]) / per_second
    return None


def _number(key: str, value: float | str) -> float:
    """Raises ValueError for what is no number, is not finite, or is too large for one."""
    try:
        number = float(value)
    except (ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{key}={_shown(value)} is not a finite number")
    return number


_CSV_NAMES = {
    "ContextTokens": "input_tokens",
    "GeneratedTokens": "output_tokens",
    "num_prefill_tokens": "input_tokens",
    "num_decode_tokens": "output_tokens",
}


def _read_csv(path: Path) -> Iterator[tuple[int, Row, float | None]]:
    reader = csv.reader(_decode(path, line, data) for line, data in enumerate(_open(path), start=1))
    header = [name.strip().lstrip("\ufeff") for name in next(reader, [])]
    names = [_CSV_NAMES.get(name, name) for name in header]
    missing = [key for key in ("input_tokens", "output_tokens") if key not in names]
    if missing:
        raise DatasetError(
            f"{path}, line 1: needs the columns ContextTokens, GeneratedTokens (or num_prefill_tokens, num_decode_tokens); "
            f"has {', '.join(header) or 'none'}"
        )
    for line, cells in enumerate(reader, start=2):
        if not cells:
            continue
        if len(cells) != len(header):
            raise DatasetError(f"{path}, line {line}: has {len(cells)} columns, the header {len(header)}")
        row: Row = dict(zip(names, cells, strict=True))
        try:
            for key in ("input_tokens", "output_tokens"):
                row[key] = _whole(key, row[key])
            seconds = _csv_seconds(row.get("TIMESTAMP"))
        except ValueError as error:
            raise DatasetError(f"{path}, line {line}: {error}") from error
        yield line, row, seconds


def _csv_seconds(text: str | None) -> float | None:
    """Seconds of a number or of a date such as 2023-11-16 18:17:03.9799600."""
    if text is None:
        return None
    if ":" not in text:
        return _number("TIMESTAMP", text)
    whole, _, fraction = text.partition(".")
    try:
        return datetime.fromisoformat(whole + "+00:00").timestamp() + float(f"0.{fraction or 0}")
    except ValueError:
        raise ValueError(f"TIMESTAMP={_shown(text)} is not a number or a date and time") from None


def _whole(key: str, text: str) -> int:
    """Of "5" or "5.0"."""
    number = _number(key, text)
    if not number.is_integer():
        raise ValueError(f"{key}={_shown(text)} is not an integer")
    return int(number)


def _output_tokens(row: Row) -> int | None:
    key = _first_key(row, OUTPUT_LENGTH_KEYS)
    if key is not None and isinstance(row[key], dict):
        return _count(row[key], min(row[key], default=""), least=0)
    if key is not None:
        return _count(row, key, least=0)
    text_key = _first_key(row, OUTPUT_TEXT_KEYS)
    if text_key is None or not isinstance(row[text_key], str):
        return None
    return -(-len(row[text_key]) // CHARACTERS_PER_TOKEN)


def _count(row: Row, key: str, least: int) -> int:
    value = row.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{key or 'output length'}={_shown(value)} is not an integer of at least {least}")
    return value


def _first_key(row: Row, keys: tuple[str, ...]) -> str | None:
    return next((key for key in keys if row.get(key) is not None), None)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
