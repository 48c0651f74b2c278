"""Everything about text, for whoever has tokens: without torch, so that the gateway can use it too."""

from __future__ import annotations

from .detokenizer import Detokenizer
from .stopping import FinishRule, StopStrings
from .tokenizer import Tokenizer, load_tokenizer

__all__ = ["Detokenizer", "FinishRule", "StopStrings", "Tokenizer", "load_tokenizer"]
