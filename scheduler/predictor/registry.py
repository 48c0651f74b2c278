"""Predictors by name, each behind the guard."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from packhorse.errors import ConfigError

from .base import Predictor
from .embedding import SentenceModel, prompt_decoder
from .guard import Guarded
from .learned import Learned
from .oracle import NoPredictor, Oracle
from .percentile import Percentile
from .rank import Ranker
from .regressor import Regressor
from .retrieval import Retrieval
from .store import CAPACITY

PREDICTORS = ("none", "percentile", "regressor", "rank", "retrieval", "learned", "oracle")


def make_predictor(
    name: str,
    seed: int = 0,
    *,
    path: Path | None = None,
    capacity: int = CAPACITY,
    embedding: str | None = None,
    embedding_tokenizer: Path | None = None,
) -> Guarded:
    """The predictor `name`, as it was saved at `path` where given.

    `capacity` bounds the prompts that retrieval and learned store; `embedding` names a sentence-transformers model for them,
    `embedding_tokenizer` the folder whose tokenizer makes text of jobs that come as token ids.
    Raises ConfigError for an unknown name, a file that does not fit, or an embedding that cannot be had.
    """
    if embedding is not None and name not in ("retrieval", "learned"):
        raise ConfigError(
            f"embedding={embedding}: predictor {name} embeds nothing; retrieval and learned do", param="embedding"
        )

    def sentence_model() -> SentenceModel | None:
        decode = prompt_decoder(embedding_tokenizer) if embedding_tokenizer is not None else None
        return SentenceModel(embedding, decode) if embedding is not None else None

    makers: dict[str, Callable[[], Predictor]] = {
        "none": NoPredictor,
        "percentile": Percentile,
        "regressor": lambda: Regressor(seed),
        "rank": lambda: Ranker(seed),
        "retrieval": lambda: Retrieval(seed, capacity, sentence_model()),
        "learned": lambda: Learned(seed, capacity, sentence_model()),
        "oracle": Oracle,
    }
    if name not in makers:
        raise ConfigError(f"predictor={name!r} is not one of {', '.join(PREDICTORS)}", param="predictor")
    predictor = Guarded(makers[name]())
    if path is not None:
        predictor.load(path)
    return predictor
