"""What every message is made of: the frozen model, roles, and an error on the wire."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from packhorse.errors import RETRY_SECONDS, PackhorseError, from_code

Role = Literal["prefill", "decode"]
FinishReason = Literal["stop", "length"]


class Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ErrorInfo(Model):
    """A PackhorseError on the wire."""

    code: str
    message: str
    param: str | None = None
    retry_after_seconds: float = RETRY_SECONDS

    @classmethod
    def of(cls, error: PackhorseError) -> ErrorInfo:
        retry = error.retry_after_seconds
        return cls(code=error.code, message=error.message, param=error.param, retry_after_seconds=retry)

    def error(self) -> PackhorseError:
        return from_code(self.code, self.message, self.param, self.retry_after_seconds)
