"""What makes a vector of a prompt for the store: a sketch of its weighted n-grams, or a sentence-embedding model by option.

The sketch is ours: n-grams count by the weight that the regressor gives them, so that prompts are near to each other when they share
what decides the length. Plain TF-IDF finds prompts on one topic instead.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from packhorse.errors import ConfigError

from .base import JobFeatures
from .features import COLUMNS, Rows, mix

DIMS = 256
COPIES = 4  # of every column in the sketch, each with a sign of its own
LEAST_WEIGHT = 0.01

Vectors = npt.NDArray[np.float32]


class Sketch:
    """A sparse random projection (Kane and Nelson, 2014): cosines in [DIMS] approximate those of the rows."""

    def __init__(self, dims: int = DIMS) -> None:
        self.dims = dims
        numbers = np.arange(COLUMNS * COPIES, dtype=np.uint64).reshape(COLUMNS, COPIES)
        hashed = mix(numbers + np.uint64(0x5EED))
        subtracted = np.uint64(1) - (hashed >> np.uint64(63))
        # [COLUMNS, COPIES], those that are subtracted `dims` further on: one look at memory tells place and sign.
        self._place = (hashed % np.uint64(dims) + subtracted * np.uint64(dims)).astype(np.int16)

    def vectors(self, rows: Rows, weights: npt.NDArray[np.float32]) -> Vectors:
        """[rows, dims], of norm 1. weights: [COLUMNS], the regressor's."""
        values = rows.values * (np.abs(weights[rows.columns]) + np.float32(LEAST_WEIGHT))
        places = self._place.take(rows.columns, axis=0)
        if len(rows) > 1:
            places = places + (rows.row_numbers * (2 * self.dims))[:, None]
        flat = np.bincount(places.ravel(), weights=values.repeat(COPIES), minlength=len(rows) * 2 * self.dims)
        signed = flat.reshape(len(rows), 2, self.dims)
        vectors = (signed[:, 0] - signed[:, 1]).astype(np.float32)
        norms = np.sqrt((vectors * vectors).sum(axis=1, keepdims=True))
        normed: Vectors = vectors / np.maximum(norms, np.float32(1e-12))
        return normed


def prompt_decoder(folder: Path) -> Callable[[Sequence[int]], str]:
    """Token ids to text by the tokenizer.json in `folder`, without special tokens. Raises ConfigError where it cannot be read."""
    path = folder / "tokenizer.json"
    try:
        tokenizer = Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"embedding_tokenizer={folder}: {path}: {error.strerror}", param="embedding_tokenizer"
        ) from error
    except Exception as error:  # the package raises this class itself
        raise ConfigError(f"embedding_tokenizer={folder}: {path}: {error}", param="embedding_tokenizer") from error
    return lambda ids: str(tokenizer.decode(list(ids), skip_special_tokens=True))


class SentenceModel:
    """Sentence embeddings by the sentence-transformers package (an option; it loads torch and may download the model).

    Jobs need `text`, or `decode` to make it from token ids. Raises ConfigError where the package, the model or the text is missing.
    """

    def __init__(self, model: str, decode: Callable[[Sequence[int]], str] | None = None) -> None:
        self.name = model
        self._decode = decode
        try:
            package = importlib.import_module("sentence_transformers")
        except ImportError as error:
            raise ConfigError(
                f"embedding={model}: needs the package sentence-transformers, which is not installed; "
                "without the option prompts are embedded by hashed n-grams",
                param="embedding",
            ) from error
        try:
            self._model: Any = package.SentenceTransformer(model)
        except (OSError, ValueError) as error:
            raise ConfigError(f"embedding={model}: cannot be loaded: {error}", param="embedding") from error
        self.dims = int(self._model.get_sentence_embedding_dimension())

    def vectors(self, jobs: Sequence[JobFeatures]) -> Vectors:
        """[jobs, dims], of norm 1."""
        embedded = self._model.encode([self._text(job) for job in jobs], normalize_embeddings=True)
        return np.asarray(embedded, np.float32)

    def _text(self, job: JobFeatures) -> str:
        if job.text is not None:
            return job.text
        if self._decode is None:
            raise ConfigError("embedding: a sentence model needs the text of the prompt, or a way to decode its tokens")
        return self._decode(job.prompt)
