"""Trains a length probe on outputs, and finds how much its scores may count. Knows nothing of how outputs come about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from bench.probe_outputs import Output
from bench.probe_worth import evaluate
from model.length_probe import LengthProbe
from packhorse.errors import ConfigError
from scheduler.predictor.refine import BINS

# The paper's: 512 wide, batches of 32, 30 epochs, learning rate 0.01 with cosine decay. Ours, for far fewer examples:
WIDTH = 64
BATCH_EXAMPLES = 256
EPOCHS = 8
LEARNING_RATE = 3e-3
WEIGHT_DECAY = 0.01
SHARPNESS = (1.0, 0.5, 0.25, 0.1, 0.05)


def examples(outputs: Sequence[Output], span_tokens: int, bins: int) -> tuple[Tensor, Tensor]:
    """hidden [N, hidden_size] of all tokens but the last of each output, and int64 [N] the bins of what remained."""
    left = torch.cat([output.tokens - torch.arange(1, output.tokens) for output in outputs])
    return torch.cat([output.hidden for output in outputs]), (left * bins // span_tokens).clamp(max=bins - 1)


def train(outputs: Sequence[Output], span_tokens: int, seed: int, bins: int = BINS) -> LengthProbe:
    """Cross-entropy on states scaled to mean 0 and variance 1; the scale becomes part of the first layer."""
    hidden, targets = examples(outputs, span_tokens, bins)
    if not len(hidden):
        raise ConfigError("no prompt has an output of two tokens or more", param="prompts")
    mean, spread = hidden.mean(0), hidden.std(0, correction=0).clamp(min=1e-6)
    scaled = (hidden - mean) / spread
    draw = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        inner, out = nn.Linear(hidden.shape[1], WIDTH), nn.Linear(WIDTH, bins)
    model = nn.Sequential(inner, nn.ReLU(), out)
    steps = EPOCHS * -(-len(scaled) // BATCH_EXAMPLES)
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(scaled), generator=draw).split(BATCH_EXAMPLES):  # type: ignore[no-untyped-call]
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(scaled[rows]), targets[rows]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    weight = inner.weight.detach() / spread
    return LengthProbe(
        weight, inner.bias.detach() - weight @ mean, out.weight.detach(), out.bias.detach(), span_tokens=span_tokens
    )


def calibrate(probe: LengthProbe, outputs: Sequence[Output], known: Sequence[Output], seed: int) -> float:
    """The sharpness with which `learned` and the probe together err least on these outputs.

    TRAIL multiplies scores as if each were news. Those of one job say nearly the same again and again, and a belief that takes them
    all at their word is too sure of itself; flattened, they count for less. Ours.
    """

    def error(sharpness: float) -> float:
        rows = evaluate(sharpened(probe, sharpness), outputs, known, seed)
        return sum(row["jobs"] * row["learned + probe: MAE"] for row in rows)

    return min(SHARPNESS, key=error)


def sharpened(probe: LengthProbe, sharpness: float) -> LengthProbe:
    """Its probabilities to the power of `sharpness`, and normed."""
    return replace(probe, out_weight=probe.out_weight * sharpness, out_bias=probe.out_bias * sharpness)
