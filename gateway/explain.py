"""GET /v1/jobs and /v1/jobs/{id}: how jobs were scheduled, as the scheduler tells it. Not OpenAI's: an extension."""

from __future__ import annotations

from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response

from gateway.failure import shown
from gateway.service import Service
from packhorse.errors import JobNotFoundError, RequestError
from transport.messages import Explanation

MOST = 1000
DEFAULT = 20


async def jobs(request: Request) -> Response:
    """The newest jobs, newest first: as many as `last` says, by default 20. 400 for another number than 1 to 1000."""
    service: Service = request.app.state.service
    told = await service.backend.explain(newest=_count(request.query_params.get("last", str(DEFAULT))))
    return _list(told.jobs)


async def job(request: Request, job_id: str) -> Response:
    """The jobs of a completion, by its `id`, one for each choice; or one of them, by `id-choice`. 404 for none of the newest."""
    service: Service = request.app.state.service
    told = await service.backend.explain(job_id)
    if not told.jobs:
        raise JobNotFoundError(f"job {shown(job_id)} is not among the newest jobs of this scheduler", param="job_id")
    return _list(told.jobs)


def _count(text: str) -> int:
    if text.isascii() and text.isdecimal() and len(text) <= len(str(MOST)) and 1 <= int(text) <= MOST:
        return int(text)
    raise RequestError(f"last={shown(text)}: must be a whole number from 1 to {MOST}", param="last")


def _list(jobs: tuple[Explanation, ...]) -> Response:
    data: list[dict[str, Any]] = [{"object": "job"} | job.model_dump(mode="json") for job in jobs]
    return JSONResponse({"object": "list", "data": data})
