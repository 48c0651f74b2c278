"""Where a model's files are, and what its JSON files say, without torch: the gateway reads them too.

A model is named by "embedded" (shipped with the package), a folder, or an id on the Hugging Face hub, whose files are
fetched once into the hub's own cache. Only JSON, Jinja, SentencePiece and safetensors files are ever fetched: no pickle, no code.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from packhorse.errors import ConfigError

EMBEDDED = "embedded"
_EMBEDDED_FOLDER = Path(__file__).parent / "embedded"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_TEXT_FILES = ["*.json", "*.jinja", "tokenizer.model"]
_WEIGHT_FILES = ["model*.safetensors"]


def find_model(path_or_id: str, weights: bool = True) -> Path:
    """The folder with the model's files; of a hub id, the cached snapshot (`weights` false: without the weights).

    Raises ConfigError naming `path_or_id` when it is no folder and cannot be fetched; what looks like a path is never looked up.
    """
    if path_or_id == EMBEDDED:
        return _EMBEDDED_FOLDER
    folder = Path(path_or_id).expanduser()
    if path_or_id and folder.exists():
        if not (folder / "config.json").is_file():
            raise ConfigError(f"model {path_or_id!r} is not a model folder: it holds no config.json", param="model")
        return folder
    if not _HUB_ID.fullmatch(path_or_id):
        raise ConfigError(f"model {path_or_id!r} does not exist", param="model")
    return _fetch(path_or_id, _TEXT_FILES + _WEIGHT_FILES if weights else _TEXT_FILES)


def _fetch(hub_id: str, patterns: list[str]) -> Path:
    from huggingface_hub import snapshot_download  # costs 0.1 s, and only hub ids need it

    try:
        return Path(snapshot_download(hub_id, allow_patterns=patterns))
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(
            f"model {hub_id!r} is neither a folder nor to be had from the Hugging Face hub: {reason}", param="model"
        ) from error


def model_name(path_or_id: str) -> str:
    """What the model is called on the wire: "embedded", the folder's own name, or the hub id."""
    folder = Path(path_or_id).expanduser()
    return folder.resolve().name if path_or_id != EMBEDDED and folder.exists() else path_or_id


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """The object in a JSON file of the model; empty when there is no such file. Raises ConfigError when it is malformed."""
    path = folder / name
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON: {error}", param="model") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{path} holds {type(value).__name__}, not an object", param="model")
    return value


def eos_token_ids(folder: Path) -> tuple[int, ...]:
    """The tokens that end a sequence: generation_config.json's, else config.json's."""
    for name in ("generation_config.json", "config.json"):
        ids = read_json(folder, name).get("eos_token_id")
        if ids is not None:
            return tuple(ids) if isinstance(ids, list) else (ids,)
    return ()


def vocab_size(folder: Path) -> int:
    """Rows of the embedding: every token id below it is one that the model accepts."""
    return _number(folder, "vocab_size")


def max_context_tokens(folder: Path) -> int:
    """The longest sequence that the model is served with.

    "longrope" models (Phi-3 128k) change every rotary frequency once any sequence of the batch is longer than the
    original context, which would change the keys of its neighbours and of the past; they are served up to that length.
    """
    config = read_json(folder, "config.json")
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if rope.get("rope_type", rope.get("type")) in ("longrope", "su"):
        original = rope.get("original_max_position_embeddings", config.get("original_max_position_embeddings"))
        if isinstance(original, int):
            return original
    return _number(folder, "max_position_embeddings", "n_positions")


def _number(folder: Path, *names: str) -> int:
    config = read_json(folder, "config.json")
    for name in names:
        value = config.get(name)
        if isinstance(value, int) and value > 0:
            return value
    raise ConfigError(f"{folder / 'config.json'} states no {names[0]}", param="model")
