"""`bench quality`: what each KV format costs on a model. Puts together texts, lookups, and teacher-forced evaluation."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from bench.machine import describe_machine
from bench.progress import progress
from bench.recall import Lookup, make_lookups, sentences
from bench.teacher import Figures, Question, count_answered, score_rows
from bench.texts import END_OF_TEXT, fill_rows, load_texts
from hack_kernels.page_format import PageFormat
from model.adapter import Model, ModelInfo
from model.loader import load_model
from model.text import Tokenizer, load_tokenizer
from packhorse.errors import ConfigError

ALL_FORMATS = ("raw", "k8v8", "k4v4", "k4v2", "k2v4", "k2v2")
GROUP_TOKENS = 8192
MAX_KL = 0.01
MAX_RECALL_LOST = 1


@dataclass(frozen=True)
class QualityOptions:
    """The options of one evaluation, as the command line names them. `rows` 0 means all."""

    model: str = "embedded"
    formats: tuple[str, ...] = ALL_FORMATS
    stories: int | None = None
    rows: int = 8
    row_tokens: int = 1024
    recall: int = 240
    text: Path | None = None
    dtype: str = "auto"
    device: str = "cpu"
    threads: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("stories", 1), ("rows", 0), ("row_tokens", 2), ("recall", 0), ("threads", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigError(f"{name}={value} must be at least {least}", param=name)


@dataclass(frozen=True)
class FormatQuality:
    """One line of the table. Bytes are those of pages, metadata included, per token of all layers; the residual is not counted."""

    format: str
    bytes_per_token: float
    bytes_share: float
    perplexity: float
    mean_kl: float
    top1: float
    recalled: int
    lookups: int


def run_quality(options: QualityOptions) -> dict[str, Any]:
    """Evaluates every format; the result is what `--json` holds. Raises ConfigError for options, texts or a model that do not do."""
    if options.threads:
        torch.set_num_threads(options.threads)
    started = time.perf_counter()
    texts = load_texts(options.text)[: options.stories]
    model = load_model(options.model, options.dtype, options.device)
    tokenizer = load_tokenizer(options.model)
    formats = parse_formats(options.formats, model.info)
    rows = fill_rows(
        texts,
        lambda text: plain_ids(tokenizer, text),
        end_of_text(tokenizer, model.info),
        min(options.row_tokens, model.info.max_context_tokens),
        options.rows or None,
    )
    lookups = make_lookups(options.recall, sentences(texts), options.seed)
    questions = [question(lookup, tokenizer) for lookup in lookups]
    with progress("quality", (len(rows) + len(questions)) * len(formats)) as view:
        results = evaluate(model, formats, rows, questions, view.advance)
    return {
        "formats": [asdict(result) for result in results],
        "recommended": recommend(results),
        "tokens": sum(len(row) - 1 for row in rows),
        "rows": len(rows),
        "config": {**asdict(options), "text": str(options.text or "held-out stories"), "dtype": str(model.info.dtype)},
        "model": {"name": model.info.name, "revision": model.info.revision},
        "machine": {**describe_machine(), "threads": torch.get_num_threads(), "torch": torch.__version__},
        "seconds": time.perf_counter() - started,
    }


def evaluate(
    model: Model,
    formats: Sequence[PageFormat],
    rows: Sequence[Sequence[int]],
    questions: Sequence[Question],
    advance: Callable[[], None] = lambda: None,
) -> list[FormatQuality]:
    """One result per format, in order; raw is the yardstick whether or not it is among them."""
    raw = PageFormat.parse("raw", model.info.head_dim, model.info.dtype)
    figures = score_rows(model, raw, formats, rows, GROUP_TOKENS, advance)
    return [
        _result(
            model.info,
            fmt,
            figures[fmt.name],
            count_answered(model, fmt, questions, GROUP_TOKENS, advance),
            len(questions),
        )
        for fmt in formats
    ]


def _result(info: ModelInfo, fmt: PageFormat, figures: Figures, recalled: int, lookups: int) -> FormatQuality:
    page_bytes = PageFormat.parse(fmt.name, info.head_dim, torch.bfloat16).page_bytes
    raw_bytes = PageFormat.parse("raw", info.head_dim, torch.bfloat16).page_bytes
    return FormatQuality(
        format=fmt.name,
        bytes_per_token=page_bytes * info.layers * info.kv_heads / fmt.page_tokens,
        bytes_share=page_bytes / raw_bytes,
        perplexity=figures.perplexity,
        mean_kl=figures.mean_kl,
        top1=figures.top1,
        recalled=recalled,
        lookups=lookups,
    )


def recommend(results: Sequence[FormatQuality]) -> str | None:
    """The format of fewest bytes with recall within MAX_RECALL_LOST of raw's and mean KL below MAX_KL; None without raw or lookups."""
    raw = next((result for result in results if result.format == "raw"), None)
    if raw is None or not raw.lookups:
        return None
    fit = [r for r in results if r.recalled >= raw.recalled - MAX_RECALL_LOST and r.mean_kl < MAX_KL]
    return min(fit, key=lambda result: result.bytes_share).format


def parse_formats(names: Sequence[str], info: ModelInfo) -> list[PageFormat]:
    """The page formats of these names, each once. Raises ConfigError naming a bad one."""
    try:
        return [PageFormat.parse(name, info.head_dim, info.dtype) for name in dict.fromkeys(names)]
    except ValueError as error:
        raise ConfigError(f"formats: {error}", param="formats") from error


def plain_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """The ids of `text` alone, without the tokens (BOS) that `encode` puts before every prompt."""
    before, ids = tokenizer.encode(""), tokenizer.encode(text)
    return ids[len(before) :] if ids[: len(before)] == before else ids


def end_of_text(tokenizer: Tokenizer, info: ModelInfo) -> int:
    """The token between texts: <|endoftext|> where the vocabulary has it, else the model's end token."""
    ids = plain_ids(tokenizer, END_OF_TEXT)
    if len(ids) == 1:
        return ids[0]
    if not info.eos_token_ids:
        raise ConfigError(f"model {info.name!r} has no end-of-text token", param="model")
    return info.eos_token_ids[0]


def question(lookup: Lookup, tokenizer: Tokenizer) -> Question:
    """The prompt, as a chat where the model has a template, and the answer up to its second word, whose tokens are expected."""
    if tokenizer.has_chat_template:
        prompt = tokenizer.chat([{"role": "user", "content": lookup.message}])
    else:
        prompt = tokenizer.encode(lookup.message + "\n")
    return Question((*prompt, *plain_ids(tokenizer, f" {lookup.key}")), tuple(plain_ids(tokenizer, f" {lookup.value}")))
