"""The texts that quality is measured on, and how they fill rows of context.

Texts, each followed by the end-of-text token, are laid one after the other and cut into rows of the model's context, so that
most tokens have several closed pages behind them. This file knows nothing of models.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import model
from packhorse.errors import ConfigError

END_OF_TEXT = "<|endoftext|>"
HELD_OUT = Path(model.__file__).parent / "embedded" / "held_out_stories.json"


def load_texts(path: Path | None) -> list[str]:
    """A JSON list of texts, or plain text split at END_OF_TEXT; None: the stories that the embedded model never saw.

    Raises ConfigError that names the file and what is wrong.
    """
    path = path or HELD_OUT
    try:
        content = path.read_text(encoding="utf-8")
        texts = json.loads(content) if path.suffix == ".json" else content.split(END_OF_TEXT)
    except OSError as error:
        raise ConfigError(f"text={path}: {error.strerror}", param="text") from error
    except ValueError as error:
        raise ConfigError(f"text={path}: {error}", param="text") from error
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise ConfigError(f"text={path}: is not a JSON list of texts", param="text")
    texts = [text.strip() for text in texts if text.strip()]
    if not texts:
        raise ConfigError(f"text={path}: holds no text", param="text")
    return texts


def fill_rows(
    texts: Sequence[str], encode: Callable[[str], list[int]], end: int, row_tokens: int, rows: int | None
) -> list[list[int]]:
    """The first `rows` whole rows (None: all) of `row_tokens` tokens; one shorter row where the texts fill none."""
    ids: list[int] = []
    for text in texts:
        ids += [*encode(text), end]
        if rows is not None and len(ids) >= rows * row_tokens:
            break
    whole = len(ids) // row_tokens if rows is None else min(rows, len(ids) // row_tokens)
    return [ids[i * row_tokens : (i + 1) * row_tokens] for i in range(whole)] or [ids]
