"""Exceptions as HTTP responses: the one place where that is decided."""

from typing import TYPE_CHECKING, Any, cast

import structlog
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Match

from server.api.problems import (
    FieldError,
    ProblemError,
    invalid,
    of_status,
    of_store_error,
    problem_response,
)
from server.store.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Callable

_log = structlog.get_logger(__name__)
_METHODS = ("DELETE", "GET", "HEAD", "PATCH", "POST", "PUT")
_STATUS_SLUGS = {404: "not-found", 405: "method-not-allowed"}


def install_failures(app: FastAPI) -> None:
    """Answer every exception with a problem document."""
    handlers: dict[type[Exception], Callable[..., Any]] = {
        ProblemError: _problem,
        StoreError: _store_error,
        RequestValidationError: _invalid_parameters,
        HTTPException: _http_exception,
        ClientDisconnect: _disconnected,
        Exception: _unexpected,
    }
    for kind, handler in handlers.items():
        app.add_exception_handler(kind, handler)


async def _problem(_: Request, error: ProblemError) -> Response:
    return error.response()


async def _store_error(request: Request, error: StoreError) -> Response:
    problem = of_store_error(error)
    if problem.slug == "store-unavailable":
        # Without a trace: while a disk is full every request ends here, and the message already says why.
        _log.warning("the store is unavailable", method=request.method, path=request.url.path, reason=str(error))
    elif problem.slug == "internal":
        _log.error("the store failed a request", method=request.method, path=request.url.path, exc_info=error)
    return problem.response()


async def _invalid_parameters(_: Request, error: RequestValidationError) -> Response:
    # Bodies are validated by hand, so that only query parameters and headers arrive here.
    return invalid(
        [
            FieldError(parameter=str(found["loc"][1]), detail=found["msg"], code=found["type"])
            for found in error.errors()
        ]
    ).response()


async def _http_exception(request: Request, error: HTTPException) -> Response:
    slug = _STATUS_SLUGS.get(error.status_code)
    if slug is None:
        return problem_response(of_status(error.status_code, error.detail), error.headers)
    headers = {"allow": ", ".join(_allowed(request))} if slug == "method-not-allowed" else error.headers
    return ProblemError(slug, headers=headers).response()


def _allowed(request: Request) -> list[str]:
    """All methods of a path: the router itself names only those of the first route that has the path."""
    app = cast("FastAPI", request.app)
    return [
        method
        for method in _METHODS
        if any(route.matches({**request.scope, "method": method})[0] is Match.FULL for route in app.router.routes)
    ]


async def _disconnected(_: Request, __: ClientDisconnect) -> Response:
    return ProblemError("incomplete-body").response()


async def _unexpected(request: Request, error: Exception) -> Response:
    _log.error("a request failed", method=request.method, path=request.url.path, exc_info=error)
    return ProblemError("internal").response()
