"""Every error that Packhorse raises on purpose, with its HTTP status and whether a retry may help.

    PackhorseError
     +- ConfigError               a bad flag, variable or file; the process exits with status 2
     |   +- UnsupportedModelError the model needs something that is not built; names it
     +- RequestError              400  the client's request is wrong
     |   +- ContextLengthError    400  prompt and completion do not fit the model or any worker
     |   +- AuthenticationError   401  missing or wrong API key
     |   +- ModelNotFoundError    404  the model is not served here
     |   +- JobNotFoundError      404  the scheduler knows no such job, or not any more
     |   +- BodyTimeoutError      408  the request's body took too long to arrive
     |   +- BodyTooLargeError     413  the request's body is over the gateway's limit
     |   +- ContentTypeError      415  the request's body is not JSON by its content type
     +- OverloadedError           429  queue full, or a wait beyond the deadline is predicted (retry, it says when)
     +- JobCancelledError         499  the client left
     +- WorkerLostError           502  a worker died while it held the job (retry)
     +- UnavailableError          503  no worker of a role, or no scheduler (retry)
     +- DeadlineError             504  a job state outlived its deadline (retry)
     +- TransportError            502  (retry)
         +- LinkClosedError            the peer went away
         +- LinkTimeoutError           connect, send or receive took too long
         +- HandshakeError             format, version or secret differ; not retryable
         +- FrameError                 oversized, malformed or corrupt frame

`ErrorInfo` (transport.messages) carries one of these between processes: `code` names the class.
"""

from __future__ import annotations

from typing import ClassVar

RETRY_SECONDS = 1.0  # where nothing is predicted


class PackhorseError(Exception):
    """Base of the tree. `code` is stable and machine-readable, `param` names the request field at fault.

    `retry_after_seconds`: where it is `retryable`, when a retry may help.
    """

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal_error"
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, *, param: str | None = None, retry_after_seconds: float = RETRY_SECONDS) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after_seconds = retry_after_seconds


class ConfigError(PackhorseError):
    code = "bad_config"


class UnsupportedModelError(ConfigError):
    code = "unsupported_model"


class RequestError(PackhorseError):
    status = 400
    code = "invalid_request"


class ContextLengthError(RequestError):
    code = "context_length_exceeded"


class AuthenticationError(RequestError):
    status = 401
    code = "invalid_api_key"


class ModelNotFoundError(RequestError):
    status = 404
    code = "model_not_found"


class JobNotFoundError(RequestError):
    status = 404
    code = "job_not_found"


class BodyTimeoutError(RequestError):
    status = 408
    code = "body_timeout"


class BodyTooLargeError(RequestError):
    status = 413
    code = "body_too_large"


class ContentTypeError(RequestError):
    status = 415
    code = "unsupported_content_type"


class OverloadedError(PackhorseError):
    status = 429
    code = "overloaded"
    retryable = True


class JobCancelledError(PackhorseError):
    status = 499
    code = "cancelled"


class WorkerLostError(PackhorseError):
    status = 502
    code = "worker_lost"
    retryable = True


class UnavailableError(PackhorseError):
    status = 503
    code = "unavailable"
    retryable = True


class DeadlineError(PackhorseError):
    status = 504
    code = "deadline_exceeded"
    retryable = True


class TransportError(PackhorseError):
    status = 502
    code = "transport_error"
    retryable = True


class LinkClosedError(TransportError):
    code = "link_closed"


class LinkTimeoutError(TransportError):
    code = "link_timeout"


class HandshakeError(TransportError):
    code = "handshake_refused"
    retryable = False


class FrameError(TransportError):
    code = "bad_frame"


def _tree(root: type[PackhorseError]) -> list[type[PackhorseError]]:
    return [root, *(leaf for child in root.__subclasses__() for leaf in _tree(child))]


def from_code(
    code: str, message: str, param: str | None = None, retry_after_seconds: float = RETRY_SECONDS
) -> PackhorseError:
    """The error whose class has this `code`; an unknown code becomes a plain PackhorseError."""
    kinds = {kind.code: kind for kind in _tree(PackhorseError)}
    return kinds.get(code, PackhorseError)(message, param=param, retry_after_seconds=retry_after_seconds)
