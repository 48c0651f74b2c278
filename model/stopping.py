"""When a job ends: EOS, stop tokens, stop strings, or the number of tokens it asked for.

The prefill worker asks about token 1; the decode worker, with a rule of its own, about all of them. What is shown to the
client is not decided here: the gateway cuts its text with `StopStrings`.
"""

from __future__ import annotations

from packhorse.errors import RequestError
from transport.messages import FinishReason, Job

from .detokenizer import Detokenizer
from .tokenizer import Tokenizer


class StopStrings:
    """Passes text on up to the first stop string, holding back what may turn out to begin one."""

    def __init__(self, stops: tuple[str, ...]) -> None:
        if "" in stops:
            raise RequestError("a stop string is empty", param="stop")
        self._stops = stops
        self._held = ""
        self.stopped: str | None = None

    def push(self, text: str) -> tuple[str, str | None]:
        """(what may be shown now, the stop string that ended the text or None). After a stop, nothing more is shown."""
        if self.stopped is not None:
            return "", self.stopped
        text = self._held + text
        found = [(at, stop) for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            at, self.stopped = min(found, key=lambda hit: hit[0])
            self._held = ""
            return text[:at], self.stopped
        keep = max((_overlap(text, stop) for stop in self._stops), default=0)
        show = len(text) - keep
        self._held = text[show:]
        return text[:show], None

    def flush(self) -> str:
        """What is held back, at the end of the text."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of `text` with which `stop` begins, without being complete."""
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(stop[:size])), 0)


class FinishRule:
    """One job. Push every generated token, from token 1 on: also on the decode worker, which did not sample that one.

    `tokenizer` is needed only by jobs with stop strings, which are looked for in the generated text alone.
    """

    def __init__(self, job: Job, tokenizer: Tokenizer | None, eos_token_ids: tuple[int, ...]) -> None:
        sampling = job.sampling
        self._max_tokens = sampling.max_tokens
        self._stop_ids = {*sampling.stop_token_ids, *(() if sampling.ignore_eos else eos_token_ids)}
        self._stops = StopStrings(sampling.stop)
        self._text: Detokenizer | None = None
        if sampling.stop:
            if tokenizer is None:
                raise RequestError("stop strings need a tokenizer, and this model has none", param="stop")
            self._text = Detokenizer(tokenizer, job.prompt)
        self._num_tokens = 0

    def push(self, token_id: int) -> tuple[FinishReason | None, str | None]:
        """(why the job ends with this token, or None; the stop string that ended it, or None)."""
        self._num_tokens += 1
        if token_id in self._stop_ids:
            return "stop", None
        if self._text is not None:
            _, stopped = self._stops.push(self._text.push(token_id))
            if stopped is not None:
                return "stop", stopped
        return ("length", None) if self._num_tokens >= self._max_tokens else (None, None)
