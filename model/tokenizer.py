"""A model's tokenizer and chat template, without torch: gateway and workers share it.

Wraps transformers' class over the Rust tokenizers, read from `tokenizer.json` as it is. Only a checkpoint with no such file
(an old SentencePiece one) goes through AutoTokenizer, which converts it and costs two seconds for importing torch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jinja2.exceptions import TemplateError
from transformers.tokenization_utils_tokenizers import TokenizersBackend

from packhorse.errors import ConfigError, RequestError

from .source import eos_token_ids, find_model, max_context_tokens, vocab_size

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class Tokenizer:
    """Text to token ids and back, for one model.

    `vocab_size` counts the ids that the model accepts, `max_context` the tokens of its longest sequence.
    """

    def __init__(self, backend: TokenizersBackend, vocab_size: int, eos_token_ids: tuple[int, ...], max_context: int):
        self.vocab_size = vocab_size
        self.eos_token_ids = eos_token_ids
        self.max_context = max_context
        self._transformers = backend
        self._rust = backend.backend_tokenizer
        self._special = frozenset(i for i, token in self._rust.get_added_tokens_decoder().items() if token.special)
        self._byte_level = "ByteLevel" in repr(self._rust.decoder)

    def encode(self, text: str) -> list[int]:
        """The ids of a prompt, with the special tokens that the model expects around one (such as BOS)."""
        return list(self._rust.encode(text).ids)

    def chat(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """The ids of a conversation in the model's chat format, up to where the assistant's turn begins.

        Messages are {"role": ..., "content": ...}. Raises RequestError if the model has no chat template or it refuses them.
        """
        if not self.has_chat_template:
            raise RequestError("this model has no chat template; use /v1/completions", param="messages")
        try:
            ids: Any = self._transformers.apply_chat_template(
                [dict(message) for message in messages], add_generation_prompt=True, tokenize=True, return_dict=False
            )
        except (TemplateError, TypeError, ValueError, KeyError) as error:
            raise RequestError(
                f"the model's chat template refuses these messages: {error}", param="messages"
            ) from error
        return list(ids)

    @property
    def has_chat_template(self) -> bool:
        return self._transformers.chat_template is not None

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids` without special tokens; broken UTF-8 shows as U+FFFD."""
        return self._rust.decode(list(ids), skip_special_tokens=True)

    def is_silent(self, token_id: int) -> bool:
        """Whether the token never shows in text: special, or none of this tokenizer's."""
        return token_id in self._special or self._rust.id_to_token(token_id) is None

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that the token stands for within a text; of a special token, its name. Empty for an unknown id."""
        token = self._rust.id_to_token(token_id)
        if token is None:
            return b""
        if token_id in self._special:
            return token.encode()
        if self._byte_level:
            return b"".join(_byte(char) for char in token)
        if match := _BYTE_TOKEN.fullmatch(token):
            return bytes.fromhex(match[1])
        return token.replace("\u2581", " ").encode()

    def token_text(self, token_id: int) -> str:
        """`token_bytes` as text, broken UTF-8 as U+FFFD."""
        return self.token_bytes(token_id).decode("utf-8", errors="replace")


def load_tokenizer(path_or_id: str) -> Tokenizer:
    """The tokenizer of the model named as in `model.loader.load_model`. Raises ConfigError naming it."""
    folder = find_model(path_or_id, weights=False)
    try:
        backend = _backend(folder)
    except (OSError, ValueError, TypeError, KeyError, ImportError) as error:
        raise ConfigError(
            f"model {path_or_id!r}: no tokenizer can be read from {folder}: {error}", param="model"
        ) from error
    return Tokenizer(backend, vocab_size(folder), eos_token_ids(folder), max_context_tokens(folder))


def _backend(folder: Path) -> TokenizersBackend:
    if (folder / "tokenizer.json").is_file():
        loaded = TokenizersBackend.from_pretrained(folder, local_files_only=True)
    else:
        from transformers import AutoTokenizer  # imports torch

        loaded = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    if not isinstance(loaded, TokenizersBackend):
        raise TypeError(f"{type(loaded).__name__} is not a fast tokenizer")
    return loaded


def _byte(char: str) -> bytes:
    """The byte that a character stands for in a byte-level vocabulary; a character of an added token stands for itself."""
    byte = _byte_alphabet().get(char)
    return char.encode() if byte is None else bytes([byte])


@cache
def _byte_alphabet() -> dict[str, int]:
    """GPT-2's alphabet: printable bytes are themselves, the others follow from U+0100 in order."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}
