"""One choice of a request: from the tokens of its job, in order, to text that may be sent.

Text that may be the beginning of a stop string, or half a character, is held back. The worker decides when the job is over;
the stop string itself, and the token that stopped the job, are not part of the text.
"""

from __future__ import annotations

from dataclasses import dataclass

from model.text import Detokenizer, StopStrings, Tokenizer
from packhorse.errors import TransportError
from transport.messages import FinishReason, Job, JobStats, TokenOutput


@dataclass(frozen=True, slots=True)
class Piece:
    """What one token adds: `text` may be empty; `offset` is where the token's own text begins in the choice's."""

    text: str
    offset: int
    output: TokenOutput
    finish_reason: FinishReason | None


class Choice:
    """`text` is all that may be sent so far; `finish_reason` is None until the choice is over."""

    def __init__(self, job: Job, tokenizer: Tokenizer) -> None:
        self.job = job
        self.pieces: list[Piece] = []
        self.finish_reason: FinishReason | None = None
        self.stats: JobStats | None = None
        self._detokenizer = Detokenizer(tokenizer, list(job.prompt))
        self._stops = StopStrings(job.sampling.stop)
        self._offset = 0

    @property
    def text(self) -> str:
        return "".join(piece.text for piece in self.pieces)

    @property
    def num_tokens(self) -> int:
        return len(self.pieces)

    def push(self, output: TokenOutput) -> Piece:
        """The next token's piece. Raises TransportError when the worker left out what the request needs."""
        if self.job.sampling.logprobs is not None and output.logprob is None:
            raise TransportError(f"token {output.index} of {output.job_id} came without its logprob")
        self.stats = output.stats or self.stats
        offset = self._offset
        text, stopped = self._advance(output)
        self.finish_reason = "stop" if stopped else output.finish_reason
        if self.finish_reason is not None and not stopped:
            text += self._rest()
        piece = Piece(text, offset, output, self.finish_reason)
        self.pieces.append(piece)
        return piece

    def _advance(self, output: TokenOutput) -> tuple[str, bool]:
        """The text that `output` lets go, and whether a stop string was found in it."""
        if output.finish_reason == "stop" and output.stop_string is None:
            return "", False  # EOS or a stop token: no text
        new = self._detokenizer.push(output.token_id)
        self._offset += len(new)
        text, stopped = self._stops.push(new)
        return text, stopped is not None

    def _rest(self) -> str:
        """What was held back, now that nothing follows."""
        text, stopped = self._stops.push(self._detokenizer.flush())
        return text if stopped is not None else text + self._stops.flush()
