"""Prompt and output lengths, and arrival times where there are any, from a trace file.

    .csv[.gz]     ContextTokens, GeneratedTokens, TIMESTAMP (Azure); or num_prefill_tokens, num_decode_tokens (Vidur)
    .jsonl[.gz]   input_length | input_toks | input_tokens | prompt_tokens,
                  max_tokens | output_tokens | output_length | output_toks | completion_tokens,
                  timestamp (milliseconds, Mooncake) | arrival_time (seconds)

Raises ConfigError that names the file, the line and the column.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
import zlib
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from packhorse.errors import ConfigError

PROMPT = ("ContextTokens", "num_prefill_tokens", "input_length", "input_toks", "input_tokens", "prompt_tokens")
OUTPUT = (
    "GeneratedTokens", "num_decode_tokens", "max_tokens", "output_tokens", "output_length", "output_toks", "completion_tokens"
)  # fmt: skip
TIME = {"TIMESTAMP": 1.0, "arrival_time": 1.0, "timestamp": 1000.0}
SUFFIXES = (".csv", ".csv.gz", ".jsonl", ".jsonl.gz")
MAX_TOKENS = 10**9  # of a length: far above any context, and no sum or power of it overflows
Row = tuple[int, int, float | None]


def read_trace(path: Path, limit: int) -> list[Row]:
    """The first `limit` requests: (prompt tokens, output tokens, arrival in seconds or None)."""
    rows: list[Row] = []
    for line, fields in _lines(path):
        if len(rows) == limit:
            break
        try:
            rows.append((_tokens(fields, PROMPT), _tokens(fields, OUTPUT), _seconds(fields)))
        except ValueError as error:
            raise ConfigError(f"{path}, line {line}: {error}") from error
    if not rows:
        raise ConfigError(f"{path}: holds no requests")
    return rows


def _lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    text = _text(path)
    if ".csv" in path.suffixes[-2:]:
        reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
        try:
            for row in reader:
                yield reader.line_num, {str(key).strip().lstrip("\ufeff"): value for key, value in row.items()}
        except csv.Error as error:
            raise ConfigError(f"{path}, line {reader.line_num}: {error}") from error
        return
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                fields = json.loads(line)
            except ValueError as error:
                raise ConfigError(f"{path}, line {number}: is not JSON: {error}") from error
            if not isinstance(fields, dict):
                raise ConfigError(f"{path}, line {number}: holds {type(fields).__name__}, not an object")
            yield number, fields


def _text(path: Path) -> str:
    try:
        data = path.read_bytes()
        return (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 ({error.reason} at byte {error.start})") from error
    except (OSError, EOFError, zlib.error) as error:
        raise ConfigError(f"{path}: {getattr(error, 'strerror', None) or error}") from error


def _tokens(fields: dict[str, Any], names: tuple[str, ...]) -> int:
    name = next((name for name in names if fields.get(name) not in (None, "")), None)
    if name is None:
        raise ValueError(f"has none of {', '.join(names)}")
    value = fields[name]
    try:
        count = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        count = math.nan
    if not (1 <= count <= MAX_TOKENS and count.is_integer()):
        raise ValueError(f"{name}={value!r} is not a number of tokens, an integer from 1 to {MAX_TOKENS:,}")
    return int(count)


def _seconds(fields: dict[str, Any]) -> float | None:
    name = next((name for name in TIME if fields.get(name) not in (None, "")), None)
    if name is None:
        return None
    value = fields[name]
    try:
        seconds = float(value) / TIME[name]
    except OverflowError:
        seconds = math.inf
    except (TypeError, ValueError):
        seconds = _date_seconds(name, value)
    if not math.isfinite(seconds):
        raise ValueError(f"{name}={value!r} is not a finite number")
    return seconds


def _date_seconds(name: str, value: Any) -> float:
    try:
        text, _, fraction = str(value).partition(".")
        whole = datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()
        return whole + (float(f"0.{fraction}") if fraction else 0.0)
    except ValueError as error:
        raise ValueError(f"{name}={value!r} is neither a number nor a date and time") from error
