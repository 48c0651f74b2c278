"""The command line: one typer app whose commands import what they run only when they run it.

Options come from the configuration models (packhorse/options.py). Errors are one line on standard error: status 2 for what the
caller wrote, 1 for what went wrong later.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from packhorse.config import (
    DecodeConfig,
    GatewayConfig,
    PrefillConfig,
    ProcessConfig,
    SchedulerConfig,
)
from packhorse.errors import ConfigError, PackhorseError
from packhorse.launcher import DemoConfig, UpConfig
from packhorse.options import config_command, variable
from packhorse.plan import plan

app = typer.Typer(
    name="packhorse",
    help="Serve language models with prefill and decode on separate workers and the KV cache packed into a few bits.",
    epilog="Every option of a command may be given by variable: --kv-format is PACKHORSE_KV_FORMAT.",
    rich_markup_mode=None,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
BAD_USAGE, FAILED, INTERRUPTED = 2, 1, 130
COMPONENTS: dict[str, tuple[type[ProcessConfig], str]] = {
    "gateway": (GatewayConfig, "Run one gateway: the HTTP side, OpenAI-compatible."),
    "scheduler": (SchedulerConfig, "Run the scheduler, which places jobs on workers."),
    "prefill": (PrefillConfig, "Run one prefill worker: computes prompts, ships their pages."),
    "decode": (DecodeConfig, "Run one decode worker: holds pages, generates tokens."),
}


def _up(config: UpConfig) -> int:
    from packhorse.up import up

    return up(config)


def _component(name: str, config: ProcessConfig) -> int:
    from packhorse.run import run

    return run(name, config)


def _demo(config: DemoConfig) -> int:
    from packhorse.demo import demo

    return demo(config)


app.command("up", help="Run everything on this machine: scheduler, gateway and workers.")(config_command(UpConfig, _up))
for _name, (_model, _help) in COMPONENTS.items():
    app.command(_name, help=_help)(config_command(_model, functools.partial(_component, _name)))
app.command("plan")(plan)
app.command("demo", help="Start everything, stream two completions, stop.")(config_command(DemoConfig, _demo))


@app.command()
def compose(
    deployment: Annotated[Path, typer.Argument(metavar="DEPLOYMENT.yaml", help="as `packhorse plan --out` writes it")],
    folder: Annotated[
        Path, typer.Option(envvar=variable("folder"), help="folder of compose.yaml (default: this one)")
    ] = Path(),
    out: Annotated[Path | None, typer.Option(envvar=variable("out"), help="file to write (default: print it)")] = None,
) -> None:
    """Turn a deployment file into an override of compose.yaml: a service for each planned worker."""
    from packhorse.compose import write_override

    write_override(deployment, folder, out)


@app.command()
def chat(
    url: Annotated[
        str | None, typer.Option(envvar=variable("url"), help="a running server; without one, a local one is started")
    ] = None,
    model: Annotated[
        str | None, typer.Option(envvar=variable("model"), help="the model to ask for, or to start")
    ] = None,
    api_key: Annotated[str | None, typer.Option(envvar=variable("api_key"), help="the server's API key")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="longest answer")] = 256,
    temperature: Annotated[float, typer.Option(min=0.0, help="0: always the likeliest token")] = 0.7,
) -> None:
    """Talk to a model in the terminal."""
    from packhorse.chat import chat as run_chat

    raise typer.Exit(run_chat(url, model, api_key, max_tokens, temperature))


@app.command()
def explain(
    job: Annotated[
        str | None, typer.Argument(metavar="[JOB]", help="a completion's id, or a job's: the completion's and -CHOICE")
    ] = None,
    url: Annotated[str, typer.Option(envvar=variable("url"), help="a running server")] = "http://127.0.0.1:8000",
    last: Annotated[
        int | None, typer.Option(min=1, max=1000, help="the newest jobs, a line each, instead of one")
    ] = None,
    api_key: Annotated[str | None, typer.Option(envvar=variable("api_key"), help="the server's API key")] = None,
    json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Say how a job was scheduled: its predicted length, its workers, why, and what became of it."""
    from packhorse.explain import explain as run_explain

    raise typer.Exit(run_explain(url, job, last, api_key, as_json=json))


@app.command()
def doctor(json: Annotated[bool, typer.Option("--json", help="print JSON")] = False) -> None:
    """Say what this machine has and what will use it."""
    from packhorse.doctor import doctor as examine

    examine(as_json=json)


@app.command()
def version() -> None:
    """Print the version."""
    from importlib.metadata import version as installed

    typer.echo(f"packhorse {installed('packhorse')}")


@app.command(
    "bench",
    help="Measure a server (serve) or the KV formats (quality).",
    add_help_option=False,
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
)
def bench(context: typer.Context) -> None:
    from bench.cli import app as bench_app

    code = bench_app(context.args or ["--help"], prog_name="packhorse bench", standalone_mode=False)
    raise typer.Exit(code if isinstance(code, int) else 0)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """The console script. Never shows a traceback for what a caller got wrong."""
    try:
        code = app(list(arguments or sys.argv[1:]) or ["--help"], prog_name="packhorse", standalone_mode=False)
    except (typer.Abort, KeyboardInterrupt):
        sys.exit(INTERRUPTED)
    except typer.TyperException as error:
        _fail(error.format_message(), BAD_USAGE)
    except PackhorseError as error:
        _fail(error.message, BAD_USAGE if isinstance(error, ConfigError) else FAILED)
    sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str, status: int) -> NoReturn:
    """What the caller got wrong fits one line; a process that died brings its last lines along."""
    text = " ".join(message.split()) if status == BAD_USAGE else message
    print(f"packhorse: error: {text}", file=sys.stderr)
    sys.exit(status)
