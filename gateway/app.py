"""The HTTP application: which path is answered by what, and errors of HTTP itself in OpenAI's format."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException

from gateway.chat import chat_completions
from gateway.completions import completions
from gateway.edge import Edge
from gateway.explain import job, jobs
from gateway.failure import error_response, http_error_response
from gateway.openapi import describe
from gateway.service import Service
from packhorse.errors import PackhorseError, UnavailableError

_HTTP_CODES = {404: "unknown_url", 405: "method_not_allowed"}


def create_app(service: Service) -> FastAPI:
    """The application of one gateway; whoever makes `service` starts its backend first and closes it after."""
    app = FastAPI(title="Packhorse", openapi_url=None, docs_url=None, redoc_url=None)
    app.state.service = service
    app.add_middleware(Edge, service=service)
    app.add_exception_handler(PackhorseError, _packhorse_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_api_route("/v1/models", models)
    app.add_api_route("/v1/models/{model_id:path}", model)
    app.add_api_route("/v1/completions", completions, methods=["POST"])
    app.add_api_route("/v1/chat/completions", chat_completions, methods=["POST"])
    app.add_api_route("/v1/jobs", jobs)
    app.add_api_route("/v1/jobs/{job_id}", job)
    app.add_api_route("/health", health)
    app.add_api_route("/metrics", metrics)
    app.add_api_route("/status", status)
    app.add_api_route("/openapi.json", openapi, include_in_schema=False)
    return app


async def models(request: Request) -> Response:
    return JSONResponse({"object": "list", "data": [_model(_service(request))]})


async def model(request: Request, model_id: str) -> Response:
    service = _service(request)
    service.check_model(model_id)
    return JSONResponse(_model(service))


async def health(request: Request) -> Response:
    """200 when a request could be answered now; else 503, with what is missing."""
    service = _service(request)
    state = service.backend.status
    workers = [worker.info for worker in state.workers] if state else []
    counts = {role: sum(worker.role == role for worker in workers) for role in ("prefill", "decode")}
    missing = [f"{role} worker" for role, count in counts.items() if not count] if state else ["scheduler"]
    draining = service.draining
    fields = {
        "status": "draining" if draining else "unavailable" if missing else "ok",
        "missing": missing,
        "model": service.model_name,
        "scheduler": state is not None,
        "workers": counts,
        "transport": sorted({worker.link for worker in workers}),
    }
    return JSONResponse(fields, status_code=503 if missing or draining else 200)


async def metrics(request: Request) -> Response:
    return Response(_service(request).metrics.render(), media_type=CONTENT_TYPE_LATEST)


async def status(request: Request) -> Response:
    """What the scheduler last said of itself. 503 when it does not answer."""
    state = _service(request).backend.status
    if state is None:
        raise UnavailableError("the scheduler does not answer")
    return JSONResponse(state.model_dump(mode="json"))


async def openapi(request: Request) -> Response:
    return JSONResponse(describe(request.app))


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


def _model(service: Service) -> dict[str, Any]:
    """`max_model_len` is an extension that several clients read: the context in tokens."""
    return {
        "id": service.model_name,
        "object": "model",
        "created": service.created,
        "owned_by": "packhorse",
        "max_model_len": service.limits.max_context_tokens,
    }


async def _packhorse_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, PackhorseError)
    _service(request).metrics.errors.labels(error.code).inc()
    return error_response(error)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code = _HTTP_CODES.get(error.status_code, "http_error")
    _service(request).metrics.errors.labels(code).inc()
    message = f"{request.method} {request.url.path}: {error.detail}"
    return http_error_response(error.status_code, message, code, error.headers)
