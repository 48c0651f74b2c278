"""The requests that clients may send, field by field, with their ranges. A field is honoured or refused, never ignored.

A null field counts as not given. Fields of OpenAI's API that are not built are refused by name unless they carry the value
that asks for nothing (`refused` of each request, with the values that are let through). Ranges that depend on the model, such
as its vocabulary, are in gateway/limits.py.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import PydanticCustomError

from gateway.failure import invalid, shown
from packhorse.errors import RequestError

MAX_CHOICES = 128
MAX_STOPS = 4
MAX_STOP_CHARS = 1024
MAX_PAUSE_SECONDS = 600
Refused = dict[str, tuple[Any, ...]]


def _stop_strings(value: Any) -> Any:
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or not all(isinstance(stop, str) and len(stop) > 0 for stop in stops):
        raise PydanticCustomError("stop", "must be a string or a list of strings, none of them empty")
    if len(stops) > MAX_STOPS or any(len(stop) > MAX_STOP_CHARS for stop in stops):
        raise PydanticCustomError("stop", f"at most {MAX_STOPS} strings of at most {MAX_STOP_CHARS} characters")
    return stops


def _token_biases(value: Any) -> Any:
    if not isinstance(value, dict) or not all(key.isascii() and key.isdecimal() for key in value):
        raise PydanticCustomError("bias", "must be an object with token ids as its keys")
    return {int(key): bias for key, bias in value.items()}


def _prompts(value: Any) -> list[str | list[int]]:
    """Every form of `prompt` as a list of prompts."""
    if isinstance(value, str) or _is_token_ids(value):
        value = [value]
    if not isinstance(value, list) or not all(isinstance(entry, str) or _is_token_ids(entry) for entry in value):
        raise PydanticCustomError(
            "prompt", "must be a string, a list of strings, a list of token ids or a list of lists of token ids"
        )
    if not value or not all(value):
        raise PydanticCustomError("prompt", "must not be empty")
    return value


def _is_token_ids(value: Any) -> bool:
    return isinstance(value, list) and all(type(entry) is int for entry in value)


def _content(value: Any) -> str:
    """A message's text: as a string, or as parts of type text, which are joined."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list) or not all(isinstance(part, dict) for part in value):
        raise PydanticCustomError("content", "must be a string or a list of parts of type text")
    for place, part in enumerate(value):
        if part.get("type") != "text":
            kind = shown(part.get("type"))
            raise PydanticCustomError("content", f"part {place} has type {kind}; only 'text' is supported")
        if set(part) != {"type", "text"} or not isinstance(part["text"], str):
            raise PydanticCustomError("content", f"part {place} must have a string in 'text', and 'type', and no more")
    return "".join(part["text"] for part in value)


Count = Annotated[int, Field(ge=1)]


class Fields(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    refused: ClassVar[Refused] = {}


class StreamOptions(Fields):
    include_usage: bool = False

    refused: ClassVar[Refused] = {"include_obfuscation": (False,)}


class Message(Fields):
    role: str = Field(pattern=r"^[a-z_]{1,32}$")
    content: Annotated[str, BeforeValidator(_content, json_schema_input_type=str | list[dict[str, str]])]

    refused: ClassVar[Refused] = {
        "annotations": ([],), "audio": (), "function_call": (), "name": (), "refusal": (), "tool_call_id": (),
        "tool_calls": (),
    }  # fmt: skip


class ToolPause(Fields):
    after_tokens: int = Field(ge=1, description="of output; fewer than max_tokens")
    seconds: float = Field(gt=0, le=MAX_PAUSE_SECONDS)


class GenerationRequest(Fields):
    """What both endpoints take. After `seed`: extensions that OpenAI does not have."""

    model: str
    max_tokens: Count | None = None
    n: int = Field(default=1, ge=1, le=MAX_CHOICES)
    stream: bool = False
    stream_options: StreamOptions | None = None
    temperature: float = Field(default=1.0, ge=0, le=2)
    top_p: float = Field(default=1.0, gt=0, le=1)
    presence_penalty: float = Field(default=0.0, ge=-2, le=2)
    frequency_penalty: float = Field(default=0.0, ge=-2, le=2)
    logit_bias: Annotated[
        dict[int, Annotated[float, Field(ge=-100, le=100)]],
        BeforeValidator(_token_biases, json_schema_input_type=dict[str, float]),
    ] = Field(default_factory=dict)
    stop: Annotated[list[str], BeforeValidator(_stop_strings, json_schema_input_type=str | list[str])] = Field(
        default_factory=list
    )
    user: str = Field(default="", description="of no effect, as OpenAI defines it")
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)

    top_k: int = Field(default=0, ge=0, le=2**31, description="0: no limit")
    min_p: float = Field(default=0.0, ge=0, le=1)
    repetition_penalty: float = Field(default=1.0, gt=0, le=10)
    ignore_eos: bool = False
    stop_token_ids: list[int] = Field(default_factory=list, max_length=64)
    priority: int = Field(default=0, ge=-(2**31), lt=2**31)
    max_ttft_seconds: float | None = Field(
        default=None, gt=0, allow_inf_nan=False, description="refused or failed where token 1 would take longer"
    )
    cache_salt: str = Field(
        default="", max_length=256, description="pages of prompts are shared among requests of the same salt only"
    )
    tool_pause: ToolPause | None = Field(default=None, description="stops the generation for as long as a tool would")

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage


class CompletionRequest(GenerationRequest):
    prompt: Annotated[
        list[Any],
        BeforeValidator(_prompts, json_schema_input_type=str | list[str] | list[int] | list[list[int]]),
    ]
    logprobs: int | None = Field(default=None, ge=0, le=5)
    best_of: int | None = Field(default=None, description="may only say what n says")

    refused: ClassVar[Refused] = {"echo": (False,), "suffix": ("",)}


class ChatRequest(GenerationRequest):
    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: Count | None = None
    logprobs: bool = False
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    safety_identifier: str = Field(default="", description="of no effect, like user")

    refused: ClassVar[Refused] = {
        "audio": (), "function_call": ("none",), "functions": (), "metadata": (), "modalities": (["text"],),
        "moderation": (), "parallel_tool_calls": (True,), "prediction": (), "prompt_cache_key": (),
        "prompt_cache_options": (), "prompt_cache_retention": (), "reasoning_effort": (),
        "response_format": ({"type": "text"},), "service_tier": ("auto", "default"), "store": (False,),
        "tool_choice": ("none",), "tools": (), "verbosity": (), "web_search_options": (),
    }  # fmt: skip


AnyRequest = TypeVar("AnyRequest", CompletionRequest, ChatRequest)


def parse(kind: type[AnyRequest], body: dict[str, Any]) -> AnyRequest:
    """The request in `body`. Raises RequestError that names the field at fault, its value and what is allowed."""
    given = _given(kind, body, "")
    if isinstance(given.get("stream_options"), dict):
        given["stream_options"] = _given(StreamOptions, given["stream_options"], "stream_options.")
    if isinstance(given.get("tool_pause"), dict):
        given["tool_pause"] = _given(ToolPause, given["tool_pause"], "tool_pause.")
    if isinstance(given.get("messages"), list):
        given["messages"] = [
            _given(Message, message, f"messages[{place}].") if isinstance(message, dict) else message
            for place, message in enumerate(given["messages"])
        ]
    try:
        request = kind.model_validate(given)
    except ValidationError as error:
        raise invalid(error) from error
    _check_together(request)
    return request


def _given(kind: type[Fields], body: dict[str, Any], prefix: str) -> dict[str, Any]:
    """`body` without its nulls and without the refused fields that ask for nothing. Raises RequestError on the others."""
    given = {}
    for name, value in body.items():
        if name in kind.refused:
            _refuse(prefix + name, value, kind.refused[name])
        elif value is not None or name not in kind.model_fields:
            given[name] = value
    return given


def _refuse(name: str, value: Any, allowed: tuple[Any, ...]) -> None:
    if value is None or value in allowed:
        return
    if not allowed:
        raise RequestError(f"{name} is not supported", param=name)
    choices = " or ".join(shown(choice) for choice in allowed)
    raise RequestError(f"{name}={shown(value)} is not supported; allowed: {choices}", param=name)


def _check_together(request: GenerationRequest) -> None:
    """Fields that go, or do not go, with each other."""
    if request.stream_options is not None and not request.stream:
        raise RequestError("stream_options is only allowed with stream=true", param="stream_options")
    if isinstance(request, CompletionRequest):
        _check_completion(request)
    if isinstance(request, ChatRequest):
        _check_chat(request)


def _check_completion(request: CompletionRequest) -> None:
    if request.best_of is not None and request.best_of != request.n:
        raise RequestError(
            f"best_of={request.best_of} is not supported; allowed: n, which is {request.n}", param="best_of"
        )
    num_prompts = len(request.prompt)
    if num_prompts * request.n > MAX_CHOICES:
        raise RequestError(
            f"{num_prompts} prompts with n={request.n} make {num_prompts * request.n} choices; "
            f"at most {MAX_CHOICES} are allowed",
            param="prompt",
        )


def _check_chat(request: ChatRequest) -> None:
    if request.top_logprobs is not None and not request.logprobs:
        raise RequestError("top_logprobs is only allowed with logprobs=true", param="top_logprobs")
    if len({request.max_tokens, request.max_completion_tokens} - {None}) > 1:
        raise RequestError(
            f"max_tokens={request.max_tokens} and max_completion_tokens={request.max_completion_tokens} differ; "
            "give one of them",
            param="max_completion_tokens",
        )


__all__ = [
    "MAX_CHOICES",
    "ChatRequest",
    "CompletionRequest",
    "GenerationRequest",
    "Message",
    "StreamOptions",
    "ToolPause",
    "parse",
]
