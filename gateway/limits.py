"""What the model can take: tokens of its vocabulary, prompt and completion within its context. The errors name the numbers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from gateway.failure import shown
from packhorse.errors import ContextLengthError, RequestError


@dataclass(frozen=True)
class Limits:
    max_context_tokens: int
    vocab_size: int

    def check_token_ids(self, ids: Iterable[int], param: str) -> None:
        """Raises RequestError when one of `ids` is no token of the model."""
        for token_id in ids:
            if not 0 <= token_id < self.vocab_size:
                allowed = f"token ids of this model are 0 to {self.vocab_size - 1}"
                raise RequestError(f"{param} has token id {shown(token_id)}; {allowed}", param=param)

    def max_tokens(self, num_prompt_tokens: int, asked: int | None, default: int | None, param: str) -> int:
        """How many tokens may be generated: `asked`, else `default` (None: the rest of the context) as far as it fits.

        Raises ContextLengthError when the prompt leaves no room, or less than what was asked for.
        """
        room = self.max_context_tokens - num_prompt_tokens
        if room < 1:
            raise ContextLengthError(
                f"this model's context has {self.max_context_tokens} tokens; the prompt has {num_prompt_tokens}, "
                "which leaves none for the completion",
                param=param,
            )
        if asked is None:
            return room if default is None else min(room, default)
        if asked > room:
            raise ContextLengthError(
                f"this model's context has {self.max_context_tokens} tokens; the prompt has {num_prompt_tokens} "
                f"and {asked} more are asked for, {num_prompt_tokens + asked} in all",
                param=param,
            )
        return asked
