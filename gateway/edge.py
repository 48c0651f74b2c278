"""What happens to every request before and after its endpoint: an id, the API key, a place in the counts, a last resort.

Plain ASGI, so that nothing is buffered and a client that leaves is seen at once.
"""

from __future__ import annotations

import hmac
import logging
import re
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.failure import error_response
from gateway.service import Service
from packhorse.errors import AuthenticationError, JobCancelledError, PackhorseError, UnavailableError

log = logging.getLogger(__name__)

OPEN_PATHS = frozenset({"/health", "/metrics"})
ENDPOINTS = OPEN_PATHS | {
    "/status",
    "/v1/models",
    "/v1/completions",
    "/v1/chat/completions",
    "/v1/jobs",
    "/openapi.json",
}
_NAMED = {"/v1/models/": "/v1/models/{id}", "/v1/jobs/": "/v1/jobs/{id}"}
_REQUEST_ID = re.compile(r"[A-Za-z0-9_.:-]{1,128}")


class Edge:
    """Wraps the application. Every response has an x-request-id, the client's own where it sent a usable one."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app = app
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        request_id = _request_id(headers)
        status = JobCancelledError.status  # until something else is sent

        async def send_marked(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        endpoint = _endpoint(scope["path"])
        metrics = self._service.metrics
        with metrics.in_flight.track_inprogress(), self._service.request(counted=scope["path"] not in OPEN_PATHS):
            try:
                self._admit(scope["path"], headers)
                await self._app(scope, receive, send_marked)
            except PackhorseError as error:
                metrics.errors.labels(error.code).inc()
                await error_response(error)(scope, receive, send_marked)
            except Exception:
                log.exception("request %s to %s failed", request_id, endpoint)
                if status == JobCancelledError.status:
                    failure = PackhorseError(f"internal error; the gateway's log has it as request {request_id}")
                    metrics.errors.labels(failure.code).inc()
                    await error_response(failure)(scope, receive, send_marked)
            finally:
                metrics.requests.labels(endpoint, str(status)).inc()

    def _admit(self, path: str, headers: Headers) -> None:
        """Raises AuthenticationError without the API key, UnavailableError while the gateway stops."""
        if path in OPEN_PATHS:
            return
        if self._service.api_key is not None:
            scheme, _, given = headers.get("authorization", "").partition(" ")
            if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), self._service.api_key):
                raise AuthenticationError("the API key is missing or wrong: send it as `Authorization: Bearer <key>`")
        if self._service.draining:
            raise UnavailableError("the gateway is shutting down")


def _request_id(headers: Headers) -> str:
    given = headers.get("x-request-id", "")
    return given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex


def _endpoint(path: str) -> str:
    """`path` as a metric label, of which there are few."""
    for prefix, endpoint in _NAMED.items():
        if path.startswith(prefix):
            return endpoint
    return path if path in ENDPOINTS else "other"
