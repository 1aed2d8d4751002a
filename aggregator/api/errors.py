"""One shape for every error: ``{"error": {"field", "problem", "remedy"}}``; for browsers, a page saying the same."""

from __future__ import annotations

from http import HTTPStatus

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from aggregator.api.web import render
from aggregator.domain.errors import (
    ConflictError,
    CrossmarginError,
    InputError,
    RefusedError,
    SourceError,
    UnknownError,
)

_RESOURCES = ("account", "epoch", "destination", "statement")  # what a path or query names; unknown ones are 404


class ErrorDetail(BaseModel):
    """What is at fault and what to do instead."""

    field: str = Field(description="Name of the field at fault", examples=["account"])
    problem: str = Field(description="What is wrong with it", examples=["'carol' is not known"])
    remedy: str = Field(description="What to do instead; may be empty", examples=["`crossmargin accounts` lists them"])


class ErrorView(BaseModel):
    """The body of every answer that is not a success."""

    error: ErrorDetail


RESPONSES: dict[int | str, dict[str, object]] = {
    400: {"model": ErrorView, "description": "A field cannot be used"},
    404: {"model": ErrorView, "description": "No such account, epoch or destination"},
    422: {"model": ErrorView, "description": "A field is missing or malformed"},
}
WRITE_RESPONSES: dict[int | str, dict[str, object]] = {
    **RESPONSES,
    409: {"model": ErrorView, "description": "Contradicts what is stored"},
    413: {"model": ErrorView, "description": "Body too large"},
    503: {"model": ErrorView, "description": "A chain could not be asked; try again"},
}


def install(app: FastAPI) -> None:
    """Map every error to the one shape."""

    @app.exception_handler(CrossmarginError)
    async def _ours(request: Request, error: CrossmarginError) -> Response:
        if isinstance(error, InputError):
            return _answer(request, status_of(error), error.field, error.problem, error.remedy)
        if isinstance(error, SourceError):
            return _answer(request, 503, error.source, error.problem, "try again" if error.retryable else "")
        if isinstance(error, RefusedError):
            return _answer(request, 409, error.rule, error.reason, "")
        return _answer(request, 500, "", "the service failed", "see its log")

    @app.exception_handler(RequestValidationError)
    async def _malformed(request: Request, error: RequestValidationError) -> Response:
        # The offending input is not repeated: it can be long, and it is the client's own.
        first = error.errors()[0]
        if first["type"] == "json_invalid":  # its place is a number of letters, which names no field
            why = first.get("ctx", {}).get("error", "")
            return _answer(request, 422, "body", f"is no JSON: {why} at character {first['loc'][-1]}", "send JSON")
        parts = [part for part in first["loc"] if part not in ("body", "path", "query")]
        place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts).removeprefix(".")
        return _answer(request, 422, place or "body", first["msg"], "the schema is at /docs")

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> Response:
        return _answer(request, error.status_code, "request", str(error.detail), "", error.headers)

    @app.exception_handler(Exception)
    async def _unforeseen(request: Request, error: Exception) -> Response:
        return _answer(request, 500, "", "the service failed", "see its log")


def status_of(error: InputError) -> int:
    """Return the HTTP status of unusable input."""
    if isinstance(error, ConflictError):
        return 409
    return 404 if isinstance(error, UnknownError) and error.field in _RESOURCES else 400


def _answer(request: Request, status: int, field: str, problem: str, remedy: str, headers: object = None) -> Response:
    detail = ErrorDetail(field=field, problem=problem, remedy=remedy)
    extra = dict(headers) if isinstance(headers, dict) else None
    if not request.url.path.startswith("/v1/") and "text/html" in request.headers.get("accept", ""):
        page = render("error.html", title=HTTPStatus(status).phrase, error=detail)
        page.status_code = status
        return page
    return JSONResponse(ErrorView(error=detail).model_dump(), status, extra)
