"""Text from tokens, one at a time: what has been emitted is never taken back, and adds up to the text of them all.

A token's text depends on its neighbours (a multi-byte character spread over tokens, the space before a word), so each step
decodes a short window twice, without and with what is new, and emits the difference.
"""

from __future__ import annotations

from collections.abc import Sequence

from .tokenizer import Tokenizer

_BROKEN = "\ufffd"
_CONTEXT_TOKENS = 5  # of the prompt, before the first token
_MAX_HELD_TOKENS = 32  # a character has at most 4 bytes: what is still broken then stays broken


class Detokenizer:
    """One sequence. The window is `ids`, of which the first `_known` have been emitted, and `_sent` characters after them."""

    def __init__(self, tokenizer: Tokenizer, prompt_ids: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._ids = [i for i in prompt_ids[-_CONTEXT_TOKENS:] if not tokenizer.is_silent(i)]
        self._known = len(self._ids)
        self._known_text = tokenizer.decode(self._ids)
        self._sent = 0

    def push(self, token_id: int) -> str:
        """The text that became complete with this token; an unfinished character is held back."""
        if self._tokenizer.is_silent(token_id):
            return ""
        self._ids.append(token_id)
        text = self._new_text()
        whole = text.rstrip(_BROKEN)
        if (text and whole == text) or len(self._ids) - self._known > _MAX_HELD_TOKENS:
            return self._advance(text)
        emit, self._sent = whole[self._sent :], max(self._sent, len(whole))
        return emit

    def flush(self) -> str:
        """What is held back, at the end of the sequence; a broken character shows as U+FFFD."""
        return self._advance(self._new_text())

    def _new_text(self) -> str:
        """The window's text after the part that was emitted before it."""
        return self._tokenizer.decode(self._ids)[len(self._known_text) :]

    def _advance(self, text: str) -> str:
        """Emits all of `text`; the tokens that made it become the next window's context."""
        emit, self._sent = text[self._sent :], 0
        if self._known < len(self._ids):
            self._ids = self._ids[self._known :]
            self._known = len(self._ids)
            self._known_text = self._tokenizer.decode(self._ids)
        return emit
