"""`bench probe`: outputs are those that the model gives, the probe learns what can be learned, and its file is what a worker loads."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from bench.cli import app
from bench.probe import ProbeOptions
from bench.probe_outputs import Output, generate, page_format
from bench.probe_prompts import make_prompts
from bench.probe_training import calibrate, sharpened, train
from bench.probe_worth import AT, evaluate
from model.length_probe import load_length_probe
from model.loader import load_model
from model.text import load_tokenizer
from packhorse.errors import ConfigError
from tests.model.test_forward import ExactAttend

SPAN = 100


def telling(count: int, noise: float, seed: int) -> list[Output]:
    """Outputs whose states tell what remains, prompts that do not."""
    draw = torch.Generator().manual_seed(seed)
    outputs = []
    for number in range(count):
        tokens = int(torch.randint(5, SPAN, (1,), generator=draw))
        left = tokens - torch.arange(1, tokens)
        hidden = torch.randn(tokens - 1, 8, generator=draw) * noise
        hidden[:, 0] += left / SPAN * 8
        outputs.append(Output((1, 2, number), tokens, hidden * 7 + 3))
    return outputs


def test_a_probe_learns_what_the_states_tell_and_the_figures_say_so() -> None:
    known, held = telling(150, 0.3, 1), telling(60, 0.3, 2)
    probe = train(known, SPAN, seed=0)
    rows = evaluate(probe, held, known, seed=0)
    assert [row["generated"] for row in rows] == [at for at in AT if at < SPAN][: len(rows)]
    for row in rows[:4]:
        assert row["percentile + probe: MAE"] < 0.5 * row["percentile: MAE"]
        assert row["probe: tau"] > 0.7
        assert row["jobs"] == sum(output.tokens > row["generated"] for output in held)


def test_states_that_tell_nothing_are_no_help_and_the_figures_say_so_too() -> None:
    known, held = telling(150, 1e4, 1), telling(60, 1e4, 2)
    row = evaluate(train(known, SPAN, seed=0), held, known, seed=0)[0]
    assert row["percentile + probe: MAE"] > 0.8 * row["percentile: MAE"]


def test_training_is_the_same_for_the_same_seed() -> None:
    outputs = telling(20, 0.3, 1)
    one, two, other = (train(outputs, SPAN, seed) for seed in (5, 5, 6))
    assert torch.equal(one.hidden_weight, two.hidden_weight)
    assert not torch.equal(one.hidden_weight, other.hidden_weight)


def test_outputs_are_the_models_own() -> None:
    model = load_model("embedded")
    prompts = make_prompts(load_tokenizer("embedded"), 3, 16, 1024)
    outputs = generate(model, page_format("raw", model), prompts, 12)
    for prompt, output in zip(prompts, outputs, strict=True):
        text, states = list(prompt), []
        for _ in range(output.tokens):
            attend = ExactAttend()
            attend.lengths = [len(text)]
            at = torch.tensor([len(text) - 1])
            logits, hidden = model.forward_hidden(torch.tensor(text), torch.arange(len(text)), attend, at)
            states.append(hidden[0])
            text.append(int(logits.argmax()))
        assert output.tokens == 12 or text[-1] in model.info.eos_token_ids
        assert output.hidden.shape == (output.tokens - 1, model.hidden_size)
        assert torch.allclose(output.hidden, torch.stack(states)[1:], atol=1e-3)


@pytest.mark.slow
def test_the_command_writes_what_a_worker_loads(tmp_path: Path) -> None:
    out, figures = tmp_path / "probe.safetensors", tmp_path / "figures.json"
    flags = ["--out", str(out), "--json", str(figures), "--count", "40", "--span-tokens", "48", "--threads", "1"]
    result = CliRunner().invoke(app, ["probe", *flags])
    assert result.exit_code == 0, result.output
    assert load_length_probe(out, load_model("embedded")).span_tokens == 48
    assert json.loads(figures.read_text())["examples"] > 0


@pytest.mark.parametrize(
    ("options", "told"),
    [({"count": 3}, "count=3 must be"), ({"span_tokens": 2}, "span_tokens=2 must be"), ({"held_out": 0.99}, "held_out=0.99"),
     ({"threads": 0}, "threads=0")],
)  # fmt: skip
def test_bad_options_are_named(options: dict[str, float], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        ProbeOptions(Path("unused"), **options)


def test_prompts_that_do_not_do_are_named(tmp_path: Path) -> None:
    path = tmp_path / "prompts.json"
    path.write_text(json.dumps(["one", "two", "one"]))
    tokenizer = load_tokenizer("embedded")
    with pytest.raises(ConfigError, match="count=400: there are only 2 different prompts"):
        make_prompts(tokenizer, 400, 320, 1024, path)
    with pytest.raises(ConfigError, match=r"span_tokens=320: a prompt of \d+ tokens leaves no room"):
        make_prompts(tokenizer, 2, 320, 300, path)
    with pytest.raises(ConfigError, match="kv_format='k3v3'"):
        page_format("k3v3", load_model("embedded"))


def test_scores_count_for_less_where_they_are_worth_less() -> None:
    known = telling(100, 0.3, 1)
    probe = train(known, SPAN, seed=0)
    honest = telling(20, 0.3, 2)
    lying = [replace(output, hidden=output.hidden.flip(0)) for output in honest]
    sharp, flattened = (calibrate(probe, outputs, known, seed=0) for outputs in (honest, lying))
    assert flattened < sharp
    flat = sharpened(probe, 0.5)(known[0].hidden)
    squared = (flat**2) / (flat**2).sum(-1, keepdim=True)
    assert torch.allclose(squared, probe(known[0].hidden), atol=1e-5)
