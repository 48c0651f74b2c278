"""Log probabilities in OpenAI's two shapes: the chat endpoint's list of entries and the completions endpoint's four lists.

One entry per generated token, the one that ended the choice included.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from gateway.choice import Piece
from model.text import Tokenizer

LEAST_LOGPROB = -9999.0  # what OpenAI reports for a token that is impossible; JSON has no infinity


def chat_entries(pieces: Sequence[Piece], tokenizer: Tokenizer) -> dict[str, Any]:
    return {"content": [_chat_entry(piece, tokenizer) for piece in pieces], "refusal": None}


def _chat_entry(piece: Piece, tokenizer: Tokenizer) -> dict[str, Any]:
    chosen = piece.output
    top = [_chat_token(other.token_id, other.logprob, tokenizer) for other in chosen.top_logprobs]
    return {**_chat_token(chosen.token_id, chosen.logprob, tokenizer), "top_logprobs": top}


def _chat_token(token_id: int, logprob: float | None, tokenizer: Tokenizer) -> dict[str, Any]:
    raw = tokenizer.token_bytes(token_id)
    return {"token": raw.decode("utf-8", errors="replace"), "logprob": _finite(logprob), "bytes": list(raw)}


def legacy_lists(pieces: Sequence[Piece], tokenizer: Tokenizer) -> dict[str, Any]:
    """`text_offset` counts characters of the choice's text. `top_logprobs` has the chosen token, too, as OpenAI's does."""
    return {
        "tokens": [tokenizer.token_text(piece.output.token_id) for piece in pieces],
        "token_logprobs": [_finite(piece.output.logprob) for piece in pieces],
        "top_logprobs": [_legacy_top(piece, tokenizer) for piece in pieces],
        "text_offset": [piece.offset for piece in pieces],
    }


def _legacy_top(piece: Piece, tokenizer: Tokenizer) -> dict[str, float]:
    """By token text; of two tokens with the same text (halves of characters) the likelier one stays."""
    top: dict[str, float] = {}
    for other in piece.output.top_logprobs:
        top.setdefault(tokenizer.token_text(other.token_id), _finite(other.logprob))
    top.setdefault(tokenizer.token_text(piece.output.token_id), _finite(piece.output.logprob))
    return top


def _finite(logprob: float | None) -> float:
    return max(logprob, LEAST_LOGPROB) if logprob is not None and not math.isnan(logprob) else LEAST_LOGPROB
