"""Quality of the formats on the embedded model, with few texts: the arithmetic, and that history on raw pages changes nothing."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from typer.testing import CliRunner

from bench.cli import app
from bench.codes_history import Span, num_steps, step_spans
from bench.exits import EXIT_BAD_CONFIG
from bench.quality import FormatQuality, QualityOptions, evaluate, parse_formats, question, recommend
from bench.recall import make_lookups, sentences
from bench.teacher import Figures, Group, Question, count_answered, in_groups
from bench.texts import fill_rows, load_texts
from hack_kernels.page_format import PageFormat
from model.adapter import Model
from model.loader import load_model
from model.text import Tokenizer, load_tokenizer
from packhorse.errors import ConfigError

ROW_TOKENS = 333  # four pages and a rest


@pytest.fixture(scope="module")
def model() -> Model:
    return load_model("embedded")


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load_tokenizer("embedded")


@pytest.fixture(scope="module")
def rows(tokenizer: Tokenizer) -> list[list[int]]:
    return fill_rows(load_texts(None), tokenizer.encode, 0, ROW_TOKENS, 3)


def plain_causal(layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    group_size = q.shape[1] // k.shape[1]
    keys, values = (x.repeat_interleave(group_size, 1).transpose(0, 1)[None] for x in (k, v))
    out = scaled_dot_product_attention(q.transpose(0, 1)[None], keys, values, is_causal=True, scale=scale)
    return out[0].transpose(0, 1)


def in_steps(model: Model, fmt: PageFormat, texts: list[list[int]]) -> list[Tensor]:
    """The logits of every token of every text, by `Group`."""
    group = Group(model, fmt, texts)
    parts: list[list[Tensor]] = [[] for _ in texts]
    for step in range(group.num_steps):
        logits = group.step(step, lambda span: range(span.start, span.stop))
        spans = group.spans(step)
        for span, part in zip(spans, logits.split([span.num_tokens for span in spans]), strict=True):
            parts[span.text].append(part)
    return [torch.cat(part) for part in parts]


def test_spans_follow_the_pages() -> None:
    fmt = PageFormat(64, torch.float32)
    lengths = [200, 68, 3, 69]
    assert step_spans(fmt, lengths, 0) == [Span(0, 0, 68), Span(1, 0, 68), Span(2, 0, 3), Span(3, 0, 68)]
    assert step_spans(fmt, lengths, 1) == [Span(0, 68, 132), Span(3, 68, 69)]
    assert step_spans(fmt, lengths, 3) == [Span(0, 196, 200)]
    assert [num_steps(fmt, length) for length in lengths] == [4, 1, 1, 2]


def test_raw_pages_equal_a_plain_forward(model: Model, rows: list[list[int]]) -> None:
    """In a ragged group; float32 sums in another order, so the tolerance is 1e-4 on logits of about 10."""
    raw = PageFormat.parse("raw", model.info.head_dim, model.info.dtype)
    texts = [rows[0], rows[1][:68], rows[2][:3], rows[1][:150]]
    for text, logits in zip(texts, in_steps(model, raw, texts), strict=True):
        count = torch.arange(len(text))
        plain = model.forward(torch.tensor(text), count, plain_causal, count)
        torch.testing.assert_close(logits, plain, atol=1e-4, rtol=1e-4)


def test_formats_rank_by_their_bits(model: Model, rows: list[list[int]]) -> None:
    results = evaluate(model, parse_formats(["raw", "k8v8", "k4v4", "k2v2"], model.info), rows, [])
    raw, k8v8, k4v4, k2v2 = results
    assert raw.mean_kl == 0
    assert raw.top1 == 1
    assert raw.bytes_share == 1
    assert 0 < k8v8.mean_kl < k4v4.mean_kl < k2v2.mean_kl < 0.1
    assert k8v8.mean_kl < 1e-3, "int8 queries and weights leave about 1e-4"
    assert k8v8.perplexity == pytest.approx(raw.perplexity, rel=0.005)
    assert 1 > k8v8.top1 > k4v4.top1 > k2v2.top1 > 0.8
    assert [r.bytes_share for r in results[1:]] == pytest.approx([0.51953125, 0.26953125, 0.14453125])
    assert raw.bytes_per_token == 2 * 2 * 64 * 2 * 6  # K and V, 2 bytes, 64 channels, 2 heads, 6 layers


def test_perplexity_is_that_of_a_plain_forward(model: Model, rows: list[list[int]]) -> None:
    text = rows[0]
    count = torch.arange(len(text) - 1)
    logits = model.forward(torch.tensor(text[:-1]), count, plain_causal, count)
    loss = torch.nn.functional.cross_entropy(logits, torch.tensor(text[1:])).item()
    (result,) = evaluate(model, parse_formats(["raw"], model.info), [text], [])
    assert result.perplexity == pytest.approx(math.exp(loss), rel=1e-4)


def test_figures() -> None:
    raw = torch.tensor([[0.5, 0.5], [0.9, 0.1]], dtype=torch.float64).log()
    other = torch.tensor([[0.25, 0.75], [0.8, 0.2]], dtype=torch.float64).log()
    figures = Figures()
    figures.add(raw, other, torch.tensor([1, 0]))
    expected = 0.5 * math.log(2) + 0.5 * math.log(2 / 3) + 0.9 * math.log(9 / 8) + 0.1 * math.log(1 / 2)
    assert figures.mean_kl == pytest.approx(expected / 2)
    assert figures.perplexity == pytest.approx((0.75 * 0.8) ** -0.5)
    assert figures.top1 == 0.5


def test_the_model_recalls_words(model: Model, tokenizer: Tokenizer) -> None:
    lookups = make_lookups(12, sentences(load_texts(None)), seed=5)
    questions = [question(lookup, tokenizer) for lookup in lookups]
    raw = PageFormat.parse("raw", model.info.head_dim, model.info.dtype)
    assert count_answered(model, raw, questions, 2048) >= 11
    wrong = [Question(q.given, tuple(token + 1 for token in q.expected)) for q in questions]
    assert count_answered(model, raw, wrong, 2048) == 0


def test_all_expected_tokens_must_be_right(model: Model, tokenizer: Tokenizer) -> None:
    lookup = make_lookups(1, sentences(load_texts(None)), seed=5)[0]
    asked = question(lookup, tokenizer)
    raw = PageFormat.parse("raw", model.info.head_dim, model.info.dtype)
    period = tokenizer.encode(".")[0]
    assert count_answered(model, raw, [Question(asked.given, (*asked.expected, period))], 2048) == 1
    assert count_answered(model, raw, [Question(asked.given, (*asked.expected, period + 1))], 2048) == 0


def test_groups_hold_every_text_within_bounds() -> None:
    texts = [[0] * n for n in (5, 90, 40, 41, 7, 200)]
    groups = list(in_groups(texts, 100))
    assert sorted(index for group in groups for index in group) == list(range(6))
    assert all(len(group) == 1 or len(group) * max(len(texts[i]) for i in group) <= 100 for group in groups)


def test_recommendation() -> None:
    def result(name: str, share: float, kl: float, recalled: int) -> FormatQuality:
        return FormatQuality(name, 0, share, 1, kl, 1, recalled, 240)

    raw, k4v4 = result("raw", 1.0, 0.0, 239), result("k4v4", 0.28, 0.0007, 238)
    assert recommend([raw, k4v4, result("k4v2", 0.22, 0.005, 237), result("k2v2", 0.16, 0.02, 239)]) == "k4v4"
    assert recommend([raw]) == "raw"
    assert recommend([k4v4]) is None


def test_rows() -> None:
    def encode(text: str) -> list[int]:
        return [ord(char) for char in text]

    assert fill_rows(["abc", "de"], encode, 0, 3, None) == [[97, 98, 99], [0, 100, 101]]
    assert fill_rows(["abc", "de"], encode, 0, 3, 1) == [[97, 98, 99]]
    assert fill_rows(["a"], encode, 0, 9, 4) == [[97, 0]]


def test_bad_input_is_named(tmp_path: Path, model: Model) -> None:
    with pytest.raises(ConfigError, match="k3v3"):
        parse_formats(["k3v3"], model.info)
    with pytest.raises(ConfigError, match="rows=-1"):
        QualityOptions(rows=-1)
    for content in ('{"a": 1}', "[1]", "[", "[]"):
        path = tmp_path / "texts.json"
        path.write_text(content)
        with pytest.raises(ConfigError, match=r"texts\.json"):
            load_texts(path)
    with pytest.raises(ConfigError, match=r"none\.txt"):
        load_texts(tmp_path / "none.txt")


def test_command(tmp_path: Path) -> None:
    text, out = tmp_path / "texts.txt", tmp_path / "out.json"
    text.write_text("<|endoftext|>".join(load_texts(None)[:4]))
    arguments = ["--text", str(text), "--row-tokens", "200", "--rows", "1", "--recall", "2", "--formats", "raw, k4v2"]
    done = CliRunner().invoke(app, ["quality", *arguments, "--dtype", "bfloat16", "--json", str(out)])
    assert done.exit_code == 0, done.output
    result = json.loads(out.read_text())
    assert [row["format"] for row in result["formats"]] == ["raw", "k4v2"]
    assert (result["tokens"], result["config"]["dtype"]) == (199, "torch.bfloat16")
    assert "k4v2" in done.output
    assert "20.7%" in done.output
    bad = CliRunner().invoke(app, ["quality", "--model", str(tmp_path / "nowhere")])
    assert bad.exit_code == EXIT_BAD_CONFIG
    assert "nowhere" in bad.output
