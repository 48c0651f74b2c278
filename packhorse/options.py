"""Command-line options from a configuration model: field `kv_format` is flag --kv-format and variable PACKHORSE_KV_FORMAT.

Every value reaches the model as text, so that packhorse.config.build alone decides what is allowed; its errors are given the
name of the flag or the variable that the value came from. The secret comes by file or by variable, never by a flag.
"""

from __future__ import annotations

import inspect
import os
import re
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic.fields import FieldInfo

from packhorse.config import AnyConfig, ProcessConfig, build, read_secret
from packhorse.errors import ConfigError

PREFIX = "PACKHORSE_"
HELP = {
    "advertise": "host at which other processes reach this one",
    "api_key": "key that clients must send as a bearer token",
    "bind": "address of the control plane",
    "chunk_tokens": "prompt tokens per prefill step",
    "data_bind": "host:port for page streams; port 0: any free one",
    "decode": "number of decode workers",
    "decode_seconds": "longest time that a job may decode",
    "deployment": "a deployment file, as `packhorse plan --out` writes it",
    "device": "auto, cpu, cuda or cuda:<n>",
    "drain_seconds": "time that open requests get to finish at shut-down",
    "dtype": "of the weights; auto: float32 on a CPU, bfloat16 on a GPU",
    "embedding": "sentence-transformers model by which retrieval and learned compare prompts",
    "embedding_tokenizer": "folder of the served model's tokenizer.json, which makes text of prompts for the embedding",
    "heartbeat_seconds": "time between a worker's signs of life",
    "host": "host name or address that clients connect to",
    "kv_format": "raw, or k<bits>v<bits> with 2, 4 or 8 bits for each",
    "lease_bytes": "most bytes of unacknowledged pages before prefill pauses",
    "length_probe": "file by which hidden states tell what remains of jobs; `packhorse bench probe` writes it",
    "link": "how pages travel",
    "log_level": "lowest level that is logged",
    "max_body_bytes": "largest request body",
    "max_jobs": "jobs that the worker holds at once",
    "max_queue": "jobs that may wait; more are answered with 429",
    "model": "'embedded', a directory, or a Hugging Face id",
    "nic_gbps": "the worker's share of its machine's network in Gbit/s, for the first predictions of transfers",
    "placement": "how a (prefill, decode) pair is chosen",
    "policy": "order of the queue",
    "pool_bytes": "size of the page pool, unless pool_pages is given",
    "pool_pages": "pages in the pool",
    "port": "port that clients connect to; 0: any free one",
    "predictor": "what predicts output lengths: none, percentile, regressor, rank, retrieval or learned",
    "predictor_file": "file that keeps what the predictor has learned from one start to the next; made where there is none",
    "prefill": "number of prefill workers",
    "prefill_seconds": "longest time that a prompt may take",
    "queue_seconds": "longest time that a job may wait for a place",
    "release_seconds": "time that workers get to drop a job",
    "reserve_seconds": "time that a decode worker gets to reserve pages",
    "restart": "start a process that died again",
    "scheduler": "address of the scheduler's control plane",
    "served_name": "name of the model towards clients; default: the model's",
    "shed": "refuse jobs with 429 that are predicted to miss queue_seconds or shed_ttft_seconds",
    "shed_ttft_seconds": "latest token 1: jobs that are predicted to miss it are refused with 429",
    "start_seconds": "time that everything gets to come up",
    "threads": "CPU threads of each worker",
    "token_bind": "address at which workers deliver tokens",
    "worker_id": "name of this worker, at most 64 letters, digits and _ . : -; default: role-host-pid",
    "worker_timeout_seconds": "silence after which a worker counts as lost",
}


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def variable(name: str) -> str:
    return PREFIX + name.upper()


def config_command(model: type[AnyConfig], act: Callable[[AnyConfig], int | None]) -> Callable[..., None]:
    """A function for typer whose options are the fields of `model`; it calls `act` and exits with what that returns."""

    def command(context: typer.Context, **values: Any) -> None:
        given = {name: value for name, value in values.items() if value is not None}
        secret_file = given.pop("secret_file", None)
        secret = read_secret(Path(secret_file)) if secret_file else os.environ.get(variable("secret"))
        if secret:
            given["secret"] = secret
        try:
            config = build(model, given)
        except ConfigError as error:
            raise _named(error, model, context) from error
        raise typer.Exit(act(config) or 0)

    fields = [_parameter(name, field) for name, field in model.model_fields.items() if name != "secret"]
    secret = _text_parameter("secret_file", "file that holds the secret of the internal planes (or PACKHORSE_SECRET)")
    context = inspect.Parameter("context", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)
    vars(command)["__signature__"] = inspect.Signature([context, *fields, secret])
    return command


def _parameter(name: str, field: FieldInfo) -> inspect.Parameter:
    text = _help(name, field) + _default(field)
    if field.annotation is bool:
        names = f"{flag(name)}/--no-{flag(name)[2:]}"
        option = typer.Option(names, envvar=variable(name), help=text, show_envvar=False, show_default=False)
        return _keyword(name, Annotated[bool | None, option])
    return _text_parameter(name, text, _metavar(field.annotation))


def _text_parameter(name: str, text: str, metavar: str = "TEXT") -> inspect.Parameter:
    option = typer.Option(flag(name), envvar=variable(name), help=text, show_envvar=False, metavar=metavar)
    return _keyword(name, Annotated[str | None, option])


def _keyword(name: str, annotation: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _help(name: str, field: FieldInfo) -> str:
    return field.description or HELP[name]


def _default(field: FieldInfo) -> str:
    """The default as --help shows it."""
    if field.default in (None, ""):
        return ""
    shown = {True: "on", False: "off"}[field.default] if isinstance(field.default, bool) else field.default
    return f" (default: {shown})"


def _metavar(annotation: Any) -> str:
    choices = [choice for choice in typing.get_args(annotation) if choice is not type(None)]
    if choices and all(isinstance(choice, str) for choice in choices):
        return "|".join(choices)
    kind = choices[0] if choices else annotation
    return {int: "INTEGER", float: "SECONDS"}.get(kind, "TEXT")


def _named(error: ConfigError, model: type[ProcessConfig], context: typer.Context) -> ConfigError:
    """The error with the flag, or the variable, in place of the field's name, and with words in place of a pattern."""
    name, text = error.param or "", error.message.replace("Value error, ", "")
    source = context.get_parameter_source(name) if name in context.params else None
    if source is None:
        return ConfigError(text, param=name)
    shown = variable(name) if source.name == "ENVIRONMENT" else flag(name)
    text = re.sub(r"String should match pattern .*", f"allowed: {_help(name, model.model_fields[name])}", text)
    return ConfigError(text.replace(f"{name}=", f"{shown}=", 1), param=name)
