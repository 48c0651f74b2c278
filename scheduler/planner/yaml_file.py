"""YAML files read as pydantic models: every error names the file, the field, its value and what is allowed."""

from __future__ import annotations

import types
import typing
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from packhorse.errors import ConfigError

AnyModel = TypeVar("AnyModel", bound=BaseModel)


def read_yaml(path: Path) -> Any:
    """The data in a YAML file. Raises ConfigError that names the file and, for bad YAML, line and column."""
    try:
        text = path.read_text(encoding="utf-8")
        _refuse_double_keys(yaml.compose(text, Loader=yaml.SafeLoader))
        return yaml.safe_load(text)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 ({error.reason} at byte {error.start})") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ConfigError(f"{path}{where}: {error.problem}") from error
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"{path}: {' '.join(str(error).split())}") from error


def _refuse_double_keys(root: yaml.Node | None) -> None:
    """YAML would quietly keep the last of two equal keys. Every node is looked at once, however often it is referred to."""
    waiting, known = [root], set[int]()
    while waiting:
        node = waiting.pop()
        if id(node) in known or not isinstance(node, yaml.CollectionNode):
            continue
        known.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            waiting += node.value
            continue
        keys: set[str] = set()
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in keys:
                raise yaml.MarkedYAMLError(problem=f"the key {key.value!r} is there twice", problem_mark=key.start_mark)
            keys.add(key.value if isinstance(key, yaml.ScalarNode) else "")
            waiting.append(value)


def read_model(path: Path, kind: type[AnyModel]) -> AnyModel:
    """The file as a `kind`. Raises ConfigError as `read_yaml`, and for a field that is missing, unknown or wrong."""
    return check_model(str(path), kind, read_yaml(path))


def check_model(source: str, kind: type[AnyModel], data: Any) -> AnyModel:
    """`data`, which came from `source`, as a `kind`."""
    if not isinstance(data, dict):
        shown = "nothing" if data is None else type(data).__name__
        raise ConfigError(f"{source}: holds {shown}, not fields; allowed: {', '.join(kind.model_fields)}")
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        raise ConfigError(f"{source}: {_explain(kind, error)}") from error


def _explain(kind: type[BaseModel], error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    place, problem = _path(first["loc"]), first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        owner = _model_at(kind, first["loc"][:-1])
        return f"{place} is no field; allowed: {', '.join((owner or kind).model_fields)}"
    if first["type"] == "missing":
        return f"{place} is missing"
    if not place:
        return problem
    value = repr(first.get("input"))
    return f"{place}={value if len(value) <= 80 else value[:77] + '...'}: {problem}"


def _path(location: tuple[int | str, ...]) -> str:
    """machines[2].gpu"""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)
    return text.removeprefix(".")


def _model_at(kind: type[BaseModel], location: tuple[int | str, ...]) -> type[BaseModel] | None:
    """The model that holds the field at `location`, followed through lists and mappings."""
    current: type[BaseModel] | None = kind
    for part in location:
        if current is not None and isinstance(part, str) and part in current.model_fields:
            current = _model_in(current.model_fields[part].annotation)
    return current


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        return annotation if issubclass(annotation, BaseModel) else None
    return next((found for found in map(_model_in, typing.get_args(annotation)) if found), None)
