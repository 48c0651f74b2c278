"""The benchmark commands, `packhorse bench ...`. What a command needs is imported when it runs: `serve` never loads torch."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from bench.exits import EXIT_ALL_FAILED, EXIT_INTERRUPTED, config_errors
from bench.many_values import ManyValuesCommand
from bench.prefix_cache_command import prefix_cache
from bench.probe_command import probe
from bench.proof_command import proof
from bench.scheduler_command import scheduler

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="Benchmarks: load on a server, quality of the KV formats, kernels, prefix cache.",
)


@app.command()
def serve(
    url: Annotated[str, typer.Option(help="the server, http://host:port, with or without /v1")],
    rate: Annotated[
        str, typer.Option(help="requests per second, inf (all at once), or trace (the dataset's times)")
    ] = "1",
    num_prompts: Annotated[
        int, typer.Option(help="requests to send; a shorter dataset repeats, except with trace")
    ] = 100,
    dataset: Annotated[Path | None, typer.Option(help="JSONL(.gz) or CSV; default: seeded story prompts")] = None,
    model: Annotated[str | None, typer.Option(help="model name; default: the first that the server lists")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="most output tokens of any request")] = None,
    max_prompt_tokens: Annotated[int | None, typer.Option(help="clips prompts that are made from lengths")] = None,
    seed: Annotated[int, typer.Option(help="of arrival times and made prompts")] = 0,
    burstiness: Annotated[float, typer.Option(help="shape of the gamma gaps: 1 is Poisson, less is burstier")] = 1.0,
    speed: Annotated[float, typer.Option(help="with rate trace: how much faster than recorded")] = 1.0,
    concurrency: Annotated[int | None, typer.Option(help="most requests in flight; the wait counts in JCT")] = None,
    api_key: Annotated[str | None, typer.Option(envvar="PACKHORSE_API_KEY", help="sent as bearer token")] = None,
    endpoint: Annotated[str, typer.Option(help="completions or chat")] = "completions",
    slo_ttft: Annotated[float | None, typer.Option(help="goodput: most seconds to the first token")] = None,
    slo_tpot: Annotated[float | None, typer.Option(help="goodput: most seconds per output token")] = None,
    slo_jct: Annotated[float | None, typer.Option(help="goodput: most seconds per request")] = None,
    ignore_eos: Annotated[bool, typer.Option("--ignore-eos", help="ask for exactly max_tokens tokens")] = False,
    temperature: Annotated[float, typer.Option(help="sampling temperature")] = 0.0,
    timeout: Annotated[float, typer.Option(help="seconds until a request counts as failed")] = 600.0,
    max_ttft: Annotated[
        float | None,
        typer.Option(help="seconds to token 1 that requests allow (max_ttft_seconds, Packhorse's extension)"),
    ] = None,
    json: Annotated[Path | None, typer.Option(help="write summary, config and one record per request here")] = None,
) -> None:
    """Open-loop load on any OpenAI-compatible server: TTFT, TPOT, ITL, JCT, throughput and goodput."""
    from bench.console import table_console
    from bench.metrics import Limits
    from bench.report import check_writable, print_summary, write_json
    from bench.serve import ServeOptions, run_serve

    with config_errors():
        options = ServeOptions(
            url=url, rate=rate, num_prompts=num_prompts, dataset=dataset, model=model, max_tokens=max_tokens,
            max_prompt_tokens=max_prompt_tokens, seed=seed, burstiness=burstiness, speed=speed, concurrency=concurrency,
            endpoint=endpoint, ignore_eos=ignore_eos, temperature=temperature, timeout=timeout,  # type: ignore[arg-type]
            max_ttft=max_ttft, limits=Limits(slo_ttft, slo_tpot, slo_jct),
        )  # fmt: skip
        if json:
            check_writable("json", json)
        result = asyncio.run(run_serve(options, api_key))
        print_summary(result.summary, table_console())
        if json:
            write_json(json, result.as_json())
    if result.interrupted:
        raise typer.Exit(EXIT_INTERRUPTED)
    if not result.summary["completed"]:
        raise typer.Exit(EXIT_ALL_FAILED)


@app.command()
def quality(
    more: Annotated[
        list[str] | None, typer.Argument(metavar="[FORMAT]...", help="further formats, after --formats")
    ] = None,
    model: Annotated[str, typer.Option(help="embedded, a directory or a hub id")] = "embedded",
    formats: Annotated[
        list[str] | None, typer.Option(help="KV formats, raw or k<bits>v<bits>; default: the usual six")
    ] = None,
    stories: Annotated[int | None, typer.Option(help="use only the first so many texts")] = None,
    rows: Annotated[int, typer.Option(help="rows of context that the texts fill; 0: all")] = 8,
    row_tokens: Annotated[int, typer.Option(help="tokens of a row, at most the model's context")] = 1024,
    recall: Annotated[int, typer.Option(help="lookups in long contexts; 0: none")] = 240,
    text: Annotated[Path | None, typer.Option(help="texts: a JSON list, or plain text split at <|endoftext|>")] = None,
    dtype: Annotated[
        str, typer.Option(help="of the model, the residual and raw pages: auto, float32, bfloat16")
    ] = "auto",
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
    threads: Annotated[int | None, typer.Option(help="CPU threads; default: torch's")] = None,
    seed: Annotated[int, typer.Option(help="of the recall contexts")] = 0,
    quick: Annotated[bool, typer.Option("--quick", help="two rows and 24 lookups")] = False,
    json: Annotated[Path | None, typer.Option(help="write the figures here")] = None,
) -> None:
    """What the KV formats cost in quality: perplexity, KL and top-1 agreement against raw, recall, bytes."""
    from bench.console import table_console
    from bench.quality import QualityOptions, run_quality
    from bench.quality_report import print_quality
    from bench.report import check_writable, write_json

    with config_errors():
        if json:
            check_writable("json", json)
        names = [
            name.strip()
            for part in [*(formats or []), *(more or [])]
            for name in part.replace(" ", ",").split(",")
            if name.strip()
        ]
        options = QualityOptions(
            model=model, formats=tuple(names) or QualityOptions.formats, stories=stories, rows=2 if quick else rows,
            row_tokens=row_tokens, recall=min(recall, 24) if quick else recall, text=text, dtype=dtype, device=device,
            threads=threads, seed=seed,
        )  # fmt: skip
        result = run_quality(options)
        print_quality(result, table_console())
        if json:
            write_json(json, result)


@app.command(cls=ManyValuesCommand)
def kernels(
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
    format: Annotated[list[str] | None, typer.Option(help="KV formats; default k2v2")] = None,
    context: Annotated[list[int] | None, typer.Option(help="tokens; default 1024 4096 16384 65536 131072")] = None,
    batch: Annotated[list[int] | None, typer.Option(help="sequences; default 1")] = None,
    heads: Annotated[int, typer.Option(help="query heads")] = 32,
    kv_heads: Annotated[int, typer.Option(help="KV heads")] = 8,
    head_dim: Annotated[int, typer.Option(help="channels of a head")] = 128,
    chunk: Annotated[int, typer.Option(help="prefill: queries after the context")] = 512,
    threads: Annotated[int | None, typer.Option(help="CPU threads; default: torch's")] = None,
    op: Annotated[list[str] | None, typer.Option(help="decode, close_pages, prefill; default: the first two")] = None,
    impl: Annotated[list[str] | None, typer.Option(help="implementations; default: all but reference")] = None,
    repeats: Annotated[int, typer.Option(help="rounds; slow implementations sit some out, five are the least")] = 15,
    caches: Annotated[str, typer.Option(help="before each call: cold, or warm from the same call")] = "cold",
    seed: Annotated[int, typer.Option(help="of values, page tables and order")] = 0,
    json: Annotated[Path | None, typer.Option(help="write the records here")] = None,
    plot: Annotated[Path | None, typer.Option(help="write FILE.png and FILE.svg; needs matplotlib")] = None,
    compile: Annotated[
        list[str] | None, typer.Option(help="no timing: report on kernels compiled for sm_80, sm_90")
    ] = None,
    gqa: Annotated[list[int] | None, typer.Option(help="with --compile: query heads per KV head; default 4 8")] = None,
) -> None:
    """Attention on codes against its rivals: time, bandwidth, share of the machine's bounds, error. Lists: --context 1024 4096."""
    from bench.console import table_console
    from bench.kernel_report import print_kernels
    from bench.kernels import KernelOptions, run_kernels
    from bench.plot import check_plot, write_plot
    from bench.report import check_writable, write_json

    with config_errors():
        if compile:
            _compile_kernels(tuple(compile), tuple(format or ()), tuple(gqa or ()), head_dim, json)
            return
        lists = {"format": format, "context": context, "batch": batch, "op": op, "impl": impl}
        given = {name: tuple(dict.fromkeys(values)) for name, values in lists.items() if values}
        options = KernelOptions(
            device=device, heads=heads, kv_heads=kv_heads, head_dim=head_dim, chunk=chunk, threads=threads,
            repeats=repeats, caches=caches, seed=seed, **given,  # type: ignore[arg-type]
        )  # fmt: skip
        for name, path in (("json", json), ("plot", plot)):
            if path:
                check_writable(name, path)
        if plot:
            check_plot(plot)
        result = run_kernels(options)
        print_kernels(result, table_console())
        if json:
            write_json(json, result["records"])
        if plot:
            write_plot(plot, result)


def _compile_kernels(
    archs: tuple[str, ...], formats: tuple[str, ...], gqa: tuple[int, ...], head_dim: int, json: Path | None
) -> None:
    from bench.compile import DEFAULT_FORMATS, DEFAULT_GQA, compile_report, print_compiled
    from bench.console import table_console
    from bench.report import check_writable, write_json

    if json:
        check_writable("json", json)
    records = compile_report(archs, formats or DEFAULT_FORMATS, gqa or DEFAULT_GQA, head_dim)
    print_compiled(records, table_console())
    if json:
        write_json(json, records)


@app.command()
def predictors(
    data: Annotated[
        Path | None,
        typer.Option(help="JSONL(.gz) of prompt and output_tokens; default: Vicuna on Alpaca in PACKHORSE_DATA"),
    ] = None,
    predictors: Annotated[list[str] | None, typer.Option(help="those to compare; default: all")] = None,
    column: Annotated[str, typer.Option(help="which of the lengths")] = "t0.0",
    again: Annotated[str, typer.Option(help="the lengths when a prompt comes again")] = "t0.3",
    tokens: Annotated[str, typer.Option(help="model (the embedded one's token ids) or words")] = "model",
    folds: Annotated[int, typer.Option(help="how many of five to run")] = 3,
    part: Annotated[list[str] | None, typer.Option(help="held_out, online, refine, speed; default: all")] = None,
    seed: Annotated[int, typer.Option(help="of the split and the predictors")] = 0,
    json: Annotated[Path | None, typer.Option(help="write the figures here")] = None,
) -> None:
    """How well and how fast output lengths are predicted: held-out prompts, online from cold, refined while decoding."""
    from bench.console import table_console
    from bench.predictors import PredictorOptions, run_predictors
    from bench.predictors_report import print_predictors
    from bench.report import check_writable, write_json

    with config_errors():
        if json:
            check_writable("json", json)
        options = PredictorOptions(
            data=data, predictors=tuple(predictors or PredictorOptions.predictors), column=column, again=again,
            tokens=tokens, folds=folds, seed=seed, parts=tuple(part or PredictorOptions.parts),
        )  # fmt: skip
        result = run_predictors(options)
        print_predictors(result, table_console())
        if json:
            write_json(json, result)


app.command(cls=ManyValuesCommand)(scheduler)
app.command()(probe)
app.command("prefix-cache", cls=ManyValuesCommand)(prefix_cache)
app.command(cls=ManyValuesCommand)(proof)
