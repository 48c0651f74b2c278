"""Teacher-forced evaluation of KV formats on the same tokens: perplexity, KL and agreement against raw, and lookups.

All formats take each step together, so only one step's logits are kept. Each format has pages of its own, made from the keys and
values that the model computed on that format's history. This file knows nothing of texts, files or tables.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from bench.codes_history import CodesHistory, Span, num_steps, step_spans
from hack_kernels.page_format import PageFormat
from model.adapter import Model


@dataclass
class Figures:
    """Sums over tokens of one format; nats."""

    tokens: int = 0
    nll: float = 0.0
    kl: float = 0.0
    agreed: int = 0

    @property
    def perplexity(self) -> float:
        return math.exp(self.nll / self.tokens)

    @property
    def mean_kl(self) -> float:
        """Mean KL(raw || format) per token."""
        return self.kl / self.tokens

    @property
    def top1(self) -> float:
        """Share of tokens whose most likely next token is raw's."""
        return self.agreed / self.tokens

    def add(self, raw: Tensor, logprobs: Tensor, targets: Tensor) -> None:
        """raw, logprobs float64 [N, vocab]; targets int64 [N]."""
        self.tokens += targets.shape[0]
        self.nll -= logprobs.gather(1, targets[:, None]).sum().item()
        self.kl += (raw.exp() * (raw - logprobs)).sum().item()
        self.agreed += int((raw.argmax(-1) == logprobs.argmax(-1)).sum().item())


@dataclass
class Group:
    """Texts that share a forward: one step after another for one format."""

    model: Model
    fmt: PageFormat
    texts: Sequence[Sequence[int]]
    history: CodesHistory = field(init=False)

    def __post_init__(self) -> None:
        info = self.model.info
        self.history = CodesHistory(self.fmt, info.layers, info.kv_heads, self.lengths, info.device)

    @property
    def lengths(self) -> list[int]:
        return [len(text) for text in self.texts]

    @property
    def num_steps(self) -> int:
        return num_steps(self.fmt, max(self.lengths))

    def step(self, step: int, wanted: Callable[[Span], range]) -> Tensor:
        """Runs one step; logits float32 [N, vocab] of the positions that `wanted` names in each span, in order."""
        spans = step_spans(self.fmt, self.lengths, step)
        tokens = torch.tensor([token for s in spans for token in self.texts[s.text][s.start : s.stop]])
        positions = torch.cat([torch.arange(s.start, s.stop) for s in spans])
        rows, first = [], 0
        for span in spans:
            rows += [first + position - span.start for position in wanted(span)]
            first += span.num_tokens
        self.history.begin(spans)
        return self.model.forward(tokens, positions, self.history, torch.tensor(rows, dtype=torch.int64))

    def spans(self, step: int) -> list[Span]:
        return step_spans(self.fmt, self.lengths, step)


def in_groups(texts: Sequence[Sequence[int]], max_tokens: int) -> Iterator[list[int]]:
    """Indices of `texts` in groups of at most `max_tokens` in all (at least one text each), similar lengths together."""
    group: list[int] = []
    for index in sorted(range(len(texts)), key=lambda i: -len(texts[i])):
        if group and (len(group) + 1) * len(texts[group[0]]) > max_tokens:
            yield group
            group = []
        group.append(index)
    if group:
        yield group


@torch.inference_mode()
def score_rows(
    model: Model,
    raw: PageFormat,
    formats: Sequence[PageFormat],
    rows: Sequence[Sequence[int]],
    group_tokens: int,
    advance: Callable[[], None] = lambda: None,
) -> dict[str, Figures]:
    """Figures of every format on every token of `rows` that has one before it; `advance` hears of each row and format."""
    figures = {fmt.name: Figures() for fmt in formats}
    for indices in in_groups(rows, group_tokens):
        texts = [rows[i] for i in indices]
        groups = {fmt.name: Group(model, fmt, texts) for fmt in (raw, *formats)}
        _score_group(groups, raw.name, texts, figures)
        for _ in range(len(indices) * len(formats)):
            advance()
    return figures


def _score_group(
    groups: dict[str, Group], raw: str, texts: Sequence[Sequence[int]], figures: dict[str, Figures]
) -> None:
    def predicting(span: Span) -> range:
        return range(span.start, min(span.stop, len(texts[span.text]) - 1))

    for step in range(groups[raw].num_steps):
        spans = groups[raw].spans(step)
        targets = torch.tensor([texts[s.text][position + 1] for s in spans for position in predicting(s)])
        reference = _logprobs(groups[raw].step(step, predicting))
        targets = targets.to(reference.device)
        for name, figure in figures.items():
            mine = reference if name == raw else _logprobs(groups[name].step(step, predicting))
            figure.add(reference, mine, targets)


def _logprobs(logits: Tensor) -> Tensor:
    return logits.double().log_softmax(-1)


@dataclass(frozen=True)
class Question:
    """Tokens of a prompt and of the answer's beginning, then the tokens that must be the most likely ones."""

    given: tuple[int, ...]
    expected: tuple[int, ...]


@torch.inference_mode()
def count_answered(
    model: Model,
    fmt: PageFormat,
    questions: Sequence[Question],
    group_tokens: int,
    advance: Callable[[], None] = lambda: None,
) -> int:
    """Questions all of whose expected tokens are the model's first choice, teacher-forced."""
    texts = [question.given + question.expected[:-1] for question in questions]
    answered = 0
    for indices in in_groups(texts, group_tokens):
        answered += _count_group(Group(model, fmt, [texts[i] for i in indices]), [questions[i] for i in indices])
        for _ in indices:
            advance()
    return answered


def _count_group(group: Group, questions: Sequence[Question]) -> int:
    right = [True] * len(questions)

    def answering(span: Span) -> range:
        return range(max(span.start, len(questions[span.text].given) - 1), span.stop)

    for step in range(group.num_steps):
        places = [(s.text, position) for s in group.spans(step) for position in answering(s)]
        logits = group.step(step, answering)
        for (text, position), choice in zip(places, logits.argmax(-1).tolist(), strict=True):
            expected = questions[text].expected[position + 1 - len(questions[text].given)]
            right[text] &= choice == expected
    return sum(right)
