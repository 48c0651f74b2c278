"""`packhorse bench probe`: its flags."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bench.exits import config_errors
from packhorse.config import DEFAULT_KV_FORMAT


def probe(
    out: Annotated[Path, typer.Option(help="write the probe here, for --length-probe of decode workers")],
    model: Annotated[str, typer.Option(help="embedded, a directory or a hub id")] = "embedded",
    prompts: Annotated[
        Path | None, typer.Option(help="prompts: a JSON list, or plain text split at <|endoftext|>; default: made ones")
    ] = None,
    count: Annotated[int, typer.Option(help="prompts in all")] = 400,
    held_out: Annotated[float, typer.Option(help="share of them that it is judged by")] = 0.25,
    span_tokens: Annotated[int, typer.Option(help="most tokens of an output, and what the bins cover")] = 320,
    kv_format: Annotated[str, typer.Option(help="page format that will be served")] = DEFAULT_KV_FORMAT,
    threads: Annotated[int | None, typer.Option(help="CPU threads; default: torch's")] = None,
    seed: Annotated[int, typer.Option(help="of prompts, split and training")] = 0,
    json: Annotated[Path | None, typer.Option(help="write the figures here")] = None,
) -> None:
    """Trains a length probe on the hidden states of a model's own outputs, and says what it adds to predictions from the prompt."""
    from bench.console import table_console
    from bench.probe import ProbeOptions, print_probe, run_probe
    from bench.report import check_writable, write_json

    with config_errors():
        for name, path in (("out", out), ("json", json)):
            if path:
                check_writable(name, path)
        options = ProbeOptions(
            out=out, model=model, prompts=prompts, count=count, held_out=held_out, span_tokens=span_tokens,
            kv_format=kv_format, threads=threads, seed=seed,
        )  # fmt: skip
        result = run_probe(options)
        print_probe(result, table_console())
        if json:
            write_json(json, result)
