"""Every error leaves as problem details (RFC 9457): raise ProblemError anywhere under a route."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import msgspec
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from serving.logs import LOGGER
from serving.responses import ParameterError, Problem

CONTENT_TYPE = "application/problem+json"
TITLES = {400: "Bad request", 401: "Key missing or wrong", 403: "Not allowed", 404: "Not found", 405: "Method not allowed",
          409: "Conflict", 413: "Request too large", 415: "Unsupported media type", 422: "Invalid parameters",
          429: "Too many requests", 500: "Internal error", 503: "Unavailable"}
_log = logging.getLogger(LOGGER)
_encode = msgspec.json.Encoder().encode


class ProblemError(Exception):
    """An answer other than success.

    Attributes:
      status: of HTTP.
      detail: a sentence for people: no ids of users, no secrets.
      errors: by parameter or field, with 422.
      title: of the kind of problem; default: that of the status.
      headers: further ones, such as Retry-After.
    """

    def __init__(self, status: int, detail: str, errors: Sequence[ParameterError] = (), title: str = "",
                 headers: Mapping[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status, self.detail, self.errors = status, detail, list(errors)
        self.title, self.headers = title or TITLES.get(status, "Refused"), dict(headers or {})

    def body(self) -> bytes:
        """The JSON."""
        return _encode(Problem(self.status, self.title, self.detail, self.errors))

    def head(self) -> list[tuple[bytes, bytes]]:
        """The headers, as ASGI has them."""
        return [(b"content-type", CONTENT_TYPE.encode()), *((k.lower().encode(), v.encode()) for k, v in self.headers.items())]

    def response(self) -> Response:
        """The answer."""
        return Response(self.body(), self.status, self.headers, CONTENT_TYPE)


def invalid(errors: Sequence[ParameterError]) -> ProblemError:
    """422 that names what is wrong with each parameter."""
    return ProblemError(422, "; ".join(f"{e.parameter}: {e.detail}" for e in errors), errors)


def unavailable(detail: str, retry_after_s: int = 5, title: str = "") -> ProblemError:
    """503 with Retry-After."""
    return ProblemError(503, detail, title=title, headers={"Retry-After": str(retry_after_s)})


def add_problems(app: FastAPI) -> None:
    """Turns every exception under a route into problem details."""

    @app.exception_handler(ProblemError)
    async def told(_: Request, error: ProblemError) -> Response:
        return error.response()

    @app.exception_handler(RequestValidationError)
    async def wrong(_: Request, error: RequestValidationError) -> Response:
        return invalid([ParameterError(str(e["loc"][1] if len(e["loc"]) > 1 else e["loc"][0]), e["msg"])
                        for e in error.errors()]).response()

    @app.exception_handler(HTTPException)
    async def refused(_: Request, error: HTTPException) -> Response:
        return ProblemError(error.status_code, str(error.detail), headers=error.headers).response()

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> Response:
        return failure(request.scope.get("route_path", "a route"), error).response()


def failure(where: str, error: Exception) -> ProblemError:
    """500; the reason goes to the log, not to the client."""
    _log.error("request failed", exc_info=error, extra={"fields": {"route": where}})
    return ProblemError(500, "the server could not answer; its log has the reason")
