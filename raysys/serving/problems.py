"""Errors as problem+json (RFC 9457), with the path of every field that is at fault."""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.exceptions import HTTPException
from starlette.types import Scope

from raysys.errors import UserError

log = logging.getLogger("raysys")


class FieldError(BaseModel):
    """One field at fault."""

    path: str = Field(description="Where: body.k, body.item_ids.3, path.user_id; body for all.")
    message: str = Field(description="What is wrong, and what is allowed.")
    value: str | None = Field(None, description="What was found, cut at 80 characters.")


class ProblemBody(BaseModel):
    """RFC 9457, with `errors` as its extension."""

    model_config = ConfigDict(json_schema_extra={"title": "Problem"})

    type: str = Field(description="A URN that names the kind of problem.")
    title: str = Field(description="The kind of problem in words.")
    status: int
    detail: str = Field(description="What is wrong here, and how to mend it.")
    instance: str = Field(description="The path that was called.")
    errors: list[FieldError] = []


class Problem(Exception):  # noqa: N818  the RFC's own word
    """An answer that is an error.

    Args:
        status: of HTTP.
        kind: last part of the type's URN, such as `unknown-user`.
        detail: what is wrong and how to mend it.
        errors: the fields at fault.
        retry_after_s: for 503: when to try again.
    """

    def __init__(
        self,
        status: int,
        kind: str,
        detail: str,
        errors: Sequence[FieldError] = (),
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(detail)
        self.status, self.kind, self.detail = status, kind, detail
        self.errors = list(errors)
        self.retry_after_s = retry_after_s

    def response(self, instance: str) -> Response:
        """As HTTP."""
        content = ProblemBody(
            type=f"urn:raysys:problem:{self.kind}",
            title=self.kind.replace("-", " "),
            status=self.status,
            detail=_printable(self.detail),
            instance=_printable(instance),
            errors=self.errors,
        )
        headers = {} if self.retry_after_s is None else {"Retry-After": str(self.retry_after_s)}
        return Response(
            json.dumps(content.model_dump()).encode(),
            status_code=self.status,
            media_type="application/problem+json",
            headers=headers,
        )


def invalid(path: str, message: str, value: object = None) -> Problem:
    """A 422 about one field."""
    error = FieldError(path=path, message=message, value=_short(value))
    return Problem(422, "invalid-request", f"{path}: {message}", [error])


_QUOTING = (Problem, HTTPException, RequestValidationError, ValidationError)


def fault(scope: Scope, error: Exception) -> Response:
    """The 500 for what nobody expected; the log has it whole, but for who asked.

    Args:
        scope: of the request. The log names its route as a pattern, as ids of users stand in paths.
        error: what happened. Answers that were being made meanwhile are left out of its traceback:
            they quote what was sent.
    """
    route = getattr(scope.get("route"), "path_format", "a path without a route")
    each: BaseException = error
    while each.__context__ is not None:
        if isinstance(each.__context__, _QUOTING):
            each.__context__ = each.__cause__ = None
        else:
            each = each.__context__
    log.exception("a fault while answering %s %s", scope["method"], route, exc_info=error)
    detail = "a fault of the server; its log has the details"
    return Problem(500, "fault", detail).response(scope["path"])


def handle_problems(app: FastAPI) -> None:
    """Answer every error of the application with problem+json."""

    @app.exception_handler(Problem)
    async def of_problem(request: Request, error: Problem) -> Response:
        return error.response(request.url.path)

    @app.exception_handler(RequestValidationError)
    async def of_validation(request: Request, error: RequestValidationError) -> Response:
        errors = [_field_error(problem) for problem in error.errors()[:20]]
        detail = "; ".join(f"{e.path}: {e.message}" for e in errors)
        return Problem(422, "invalid-request", detail, errors).response(request.url.path)

    @app.exception_handler(HTTPException)
    async def of_http(request: Request, error: HTTPException) -> Response:
        if error.status_code == 400 and error.__cause__ is not None:  # so FastAPI wraps it
            return invalid("body", _why_unreadable(error.__cause__)).response(request.url.path)
        kind = HTTPStatus(error.status_code).phrase.lower().replace(" ", "-")
        detail = error.detail
        if error.status_code == 404:
            detail = f"there is no {request.url.path}; /docs lists what there is"
        elif error.status_code == 405:
            detail = f"{request.method} is not for {request.url.path}; /docs lists what is"
        response = Problem(error.status_code, kind, detail).response(request.url.path)
        response.headers.update(error.headers or {})
        return response

    @app.exception_handler(UserError)
    async def of_user_error(request: Request, error: UserError) -> Response:
        # mistakes in a request are Problems: this one was made by whoever runs the server
        log.error("%s", error)
        detail = "the server is not set up well; its log says what to mend"
        return Problem(503, "not-available", detail).response(request.url.path)

    @app.exception_handler(Exception)
    async def of_fault(request: Request, error: Exception) -> Response:
        return fault(request.scope, error)


def field_errors(
    error: ValidationError, where: str, tags: Collection[str] = ()
) -> list[FieldError]:
    """The findings about a value that was validated by itself.

    Args:
        error: what pydantic says.
        where: path of the value in the body.
        tags: words at the head of paths that name no field, but which model was tried.
    """
    found = []
    for problem in error.errors(include_url=False):
        inner = problem["loc"][1:] if problem["loc"][:1] and problem["loc"][0] in tags else None
        told = {**problem, "loc": (where, *(problem["loc"] if inner is None else inner))}
        if problem["type"].startswith("union_tag"):
            context = problem.get("ctx", {})
            tag = str(context.get("discriminator", "")).strip("'")
            told["loc"] = (where, tag)
            told["type"], told["input"] = "missing", None
            if problem["type"] == "union_tag_invalid":
                told["type"], told["input"] = "tag", context["tag"]
                told["msg"] = f"must be one of {context['expected_tags']}"
        found.append(_field_error(dict(told)))
    return found


def _why_unreadable(cause: BaseException) -> str:
    """Why a body cannot be read as JSON, though its brackets may all be in place."""
    if isinstance(cause, RecursionError):
        return "nested too deeply"
    if isinstance(cause, UnicodeDecodeError):
        return f"not UTF-8: byte {cause.start} is {cause.object[cause.start]:#04x}"
    if isinstance(cause, ValueError):  # Python's own limit, of a number
        return f"not valid JSON: {_printable(str(cause)).partition(';')[0]}"[:300]
    return "cannot be read"


def _field_error(problem: dict[str, Any]) -> FieldError:
    """One finding of pydantic in our words."""
    path = ".".join(_printable(str(part))[:80] for part in problem["loc"])
    kind, message = problem["type"], str(problem["msg"])
    if kind == "extra_forbidden":
        return FieldError(path=path, message="unknown field; /docs lists the known ones")
    if kind == "missing":
        return FieldError(path=path, message="required, but missing")
    if kind == "json_invalid":
        reason = problem.get("ctx", {}).get("error", "")
        return FieldError(path="body", message=f"not valid JSON: {_printable(str(reason))}")
    message = message.removeprefix("Value error, ")
    message = _printable(message[:1].lower() + message[1:])[:300]
    return FieldError(path=path, message=message, value=_short(problem.get("input")))


def _short(value: object) -> str | None:
    """A value as people can read it in an error."""
    if value is None:
        return None
    text = _printable(value if isinstance(value, str) else repr(value))
    return text if len(text) <= 80 else text[:77] + "..."


def _printable(text: str) -> str:
    """Text that any UTF-8 reader takes: half of a surrogate pair becomes a question mark."""
    return text.encode("utf-8", "replace").decode("utf-8")
