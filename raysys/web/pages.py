"""Templates to responses, with the headers that keep a page to itself."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

from fastapi import APIRouter
from fastapi.responses import HTMLResponse, Response
from jinja2 import Environment, PackageLoader, StrictUndefined

from raysys.web.answers import Refused

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; script-src 'self'; "
        "connect-src 'self'; img-src 'self' data:; form-action 'self'; base-uri 'none'; "
        "frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",  # or a browser would not say of a form which site it is of
    "Cache-Control": "no-store",
}


_KINDS = {"css": "text/css", "js": "text/javascript"}


def assets() -> APIRouter:
    """Route of the pages' styles and scripts: /assets/NAME."""
    router = APIRouter(include_in_schema=False)
    folder = files("raysys.web") / "static"
    contents = {each.name: each.read_bytes() for each in folder.iterdir()}

    @router.get("/assets/{name}")
    async def asset(name: str) -> Response:
        if name not in contents:
            return Response(status_code=404)
        headers = {"Cache-Control": "public, max-age=300", "X-Content-Type-Options": "nosniff"}
        kind = _KINDS[name.rpartition(".")[2]]
        return Response(contents[name], media_type=kind, headers=headers)

    return router


def days(value: float) -> str:
    """A length in whole days, as people say it: `day`, `7 days`."""
    whole = max(1, round(value))
    return "day" if whole == 1 else f"{whole:,} days"


def days_ago(value: float) -> str:
    """When it was: `today`, `yesterday`, `12 days ago`."""
    whole = round(value)
    if whole < 2:
        return "yesterday" if whole == 1 else "today"
    return f"{whole:,} days ago"


def counted(tags: str, counter: str) -> str:
    """What a counter's tags say, in words: `degraded, search` of `raysys_answers`."""
    told = tags.split(",")
    if counter == "raysys_answers":
        told = [{"true": "degraded", "false": "whole"}.get(tag, tag) for tag in told]
    place = {"raysys_arm_answers": 1, "raysys_arm_events": 2}.get(counter)  # of the experiment
    if place is not None and told[place] == "none":
        del told[place]
    return ", ".join(tag or "all" for tag in told)


class Pages:
    """Renders templates; everything in them is escaped.

    Args:
        name: of the shop or console, on every page.
    """

    def __init__(self, name: str) -> None:
        self._environment = Environment(
            loader=PackageLoader("raysys.web"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._environment.globals["name"] = name
        self._environment.filters["days"] = days
        self._environment.filters["days_ago"] = days_ago
        self._environment.filters["counted"] = counted

    def render(self, template: str, status: int = 200, **values: Any) -> HTMLResponse:
        """A page."""
        html = self._environment.get_template(template).render(**values)
        return HTMLResponse(html, status, HEADERS)

    def refusal(self, refused: Refused, *, fragment: bool = False, **values: Any) -> HTMLResponse:
        """A page, or a part of one, that says why there is no other."""
        template = "refused.html" if fragment else "cannot.html"
        page = self.render(template, refused.status, refused=refused, **values)
        page.headers.update(refused.headers)
        return page
