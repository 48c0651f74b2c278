"""`bench probe`: trains a length probe for a model, and says what it is worth beside a prediction from the prompt.

Prompts run through the model; at every token the hidden state and the tokens that are still to come make one example. Prompts are split
into those trained on, those by which it is calibrated, and those held out. Knows nothing of workers or of schedulers.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from bench.machine import describe_machine
from bench.probe_outputs import BATCH, generate, page_format
from bench.probe_prompts import make_prompts
from bench.probe_training import calibrate, sharpened, train
from bench.probe_worth import evaluate, score_microseconds
from bench.progress import progress
from model.loader import load_model
from model.text import load_tokenizer
from packhorse.config import DEFAULT_KV_FORMAT
from packhorse.errors import ConfigError

CALIBRATION = 0.2  # of the prompts that are not held out


@dataclass(frozen=True)
class ProbeOptions:
    """As the command line names them. `span_tokens` is what the bins cover, and the most tokens of an output."""

    out: Path
    model: str = "embedded"
    prompts: Path | None = None
    count: int = 400
    held_out: float = 0.25
    span_tokens: int = 320
    kv_format: str = DEFAULT_KV_FORMAT
    threads: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("count", 20), ("span_tokens", 16), ("threads", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigError(f"{name}={value} must be at least {least}", param=name)
        if not 0.05 <= self.held_out <= 0.9:
            raise ConfigError(f"held_out={self.held_out} is not within 0.05 and 0.9", param="held_out")


def run_probe(options: ProbeOptions) -> dict[str, Any]:
    """Trains, writes `out` and tells. Raises ConfigError for options, prompts or a model that do not do."""
    if options.threads:
        torch.set_num_threads(options.threads)
    model, tokenizer = load_model(options.model), load_tokenizer(options.model)
    prompts = make_prompts(
        tokenizer, options.count, options.span_tokens, model.info.max_context_tokens, options.prompts, options.seed
    )
    seconds = {"generate": -time.perf_counter()}
    with progress("outputs", len(prompts)) as view:
        outputs = generate(model, page_format(options.kv_format, model), prompts, options.span_tokens, view.advance)
    seconds["generate"] += time.perf_counter()
    held = max(1, round(options.held_out * len(outputs)))
    seconds["train"] = -time.perf_counter()
    cut = held + max(1, round(CALIBRATION * (len(outputs) - held)))
    probe = train(outputs[cut:], options.span_tokens, options.seed)
    sharpness = calibrate(probe, outputs[held:cut], outputs[cut:], options.seed)
    probe = sharpened(probe, sharpness)
    seconds["train"] += time.perf_counter()
    probe.save(options.out, model.info.revision)
    lengths = [output.tokens for output in outputs]
    return {
        "held_out": evaluate(probe, outputs[:held], outputs[held:], options.seed),
        "lengths": {"mean": float(np.mean(lengths)), **{f"p{q}": float(np.percentile(lengths, q)) for q in (10, 50, 90)}},
        "capped": sum(n >= options.span_tokens for n in lengths) / len(lengths),
        "examples": sum(len(output.hidden) for output in outputs[cut:]),
        "sharpness": sharpness,
        "score_us": score_microseconds(probe, outputs[0].hidden),
        "seconds": seconds,
        "config": {**asdict(options), "out": str(options.out), "prompts": str(options.prompts or "made")},
        "model": {"name": model.info.name, "revision": model.info.revision},
        "machine": {**describe_machine(), "threads": torch.get_num_threads(), "torch": torch.__version__},
    }  # fmt: skip


def print_probe(result: dict[str, Any], console: Console) -> None:
    names = [key.removesuffix(": MAE") for key in result["held_out"][0] if key.endswith(": MAE")]
    table = Table("generated", "jobs", *names, title="what remains, held-out prompts: MAE (Kendall's tau)")
    for row in result["held_out"]:
        cells = [f"{row[f'{name}: MAE']:.1f} ({row[f'{name}: tau']:.2f})" for name in names]
        table.add_row(f"{row['generated']}", f"{row['jobs']}", *cells)
    console.print(table)
    lengths, seconds = result["lengths"], result["seconds"]
    console.print(
        f"outputs: mean {lengths['mean']:.0f} tokens, p10 {lengths['p10']:.0f}, p90 {lengths['p90']:.0f}, "
        f"{100 * result['capped']:.0f} % reach the limit; {result['examples']} examples, sharpness {result['sharpness']:g}; "
        f"generated in {seconds['generate']:.0f} s, "
        f"trained in {seconds['train']:.0f} s; scoring {BATCH} states takes {result['score_us']:.0f} µs"
    )
