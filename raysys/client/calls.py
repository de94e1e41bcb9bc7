"""Each call of the API as data: method, path, body, and the model of its answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypedDict, TypeVar
from urllib.parse import quote

from pydantic import BaseModel

from raysys.client import answers

A = TypeVar("A", bound=BaseModel)

_WHO = "X-Session-Id"
_LONGEST = 256

Filters = Mapping[str, Any]
Event = Mapping[str, Any]


class Made(TypedDict, total=False):
    """How a list is to be made; see the API page. `arms`: experiment → arm, for testers."""

    session_id: str | None
    attributes: Mapping[str, str]
    arms: Mapping[str, str]
    explain: bool
    deadline_ms: float | None
    priority: Literal["normal", "background"]


class Whom(Made, total=False):
    """And for whom."""

    user_id: str | None


class Listed(Whom, total=False):
    """And what may be chosen from the catalogue."""

    filters: Filters | None
    k: int


class Recommended(Made, total=False):
    """Where a list stands that nobody searched for, and what is in view there."""

    place: Literal["home", "item", "cart"]
    item_ids: Sequence[str]
    filters: Filters | None
    k: int


@dataclass(frozen=True)
class Call(Generic[A]):
    """One request.

    Attributes:
        method: of HTTP.
        path: below the base URL.
        answer: what comes back.
        body: as JSON; None: none.
        headers: of this call.
        safe: whether sending it twice does no harm.
        deadline_s: seconds after which nobody wants the answer any more; None: as long as it takes.
    """

    method: str
    path: str
    answer: type[A]
    body: Mapping[str, Any] | None = None
    headers: dict[str, str] = field(default_factory=dict)
    safe: bool = True
    deadline_s: float | None = None


def listed(path: str, **asked: Any) -> Call[answers.ListAnswer]:
    """A call for a list; what is None is left out."""
    headers, deadline_s = {}, None
    if (deadline := asked.pop("deadline_ms", None)) is not None:
        headers["X-Deadline-Ms"], deadline_s = f"{deadline:g}", deadline / 1000
    if (priority := asked.pop("priority", None)) is not None:
        headers["X-Priority"] = str(priority)
    if arms := asked.pop("arms", None):
        headers["X-Experiment-Arm"] = ",".join(f"{name}={arm}" for name, arm in arms.items())
    who = asked.get("user_id") or asked.get("session_id") or ""
    if (
        isinstance(who, str)
        and who[:1].strip()
        and who.isascii()
        and who.isprintable()
        and len(who) <= _LONGEST
    ):
        headers[_WHO] = who.rstrip()  # by which a router may keep a user on one replica
    body = {
        name: list(value) if name == "item_ids" else value
        for name, value in asked.items()
        if value is not None
    }
    return Call("POST", path, answers.ListAnswer, body, headers, deadline_s=deadline_s)


def profile(user_id: str) -> Call[answers.Profile]:
    """A call for what is known of a user."""
    return Call("GET", f"/v1/users/{quote(user_id, safe='')}/profile", answers.Profile)


def of_texts(task: str, answer: type[A], texts: Sequence[str], **asked: Any) -> Call[A]:
    """A call of a text task."""
    return Call("POST", f"/v1/text/{task}", answer, {"texts": list(texts), **asked})


def of_spans(texts: Sequence[str], labels: Sequence[str] | None) -> Call[answers.Entities]:
    """A call for spans; of some labels alone, or of all."""
    asked = {} if labels is None else {"labels": list(labels)}
    return of_texts("entities", answers.Entities, texts, **asked)


READY = Call("GET", "/readyz", answers.Readiness)
BUNDLES = Call("GET", "/v1/admin/bundles", answers.BundlesAnswer)
CANARY = Call("GET", "/v1/admin/canary", answers.CanaryAnswer)
LEAVE_CANARY = Call("DELETE", "/v1/admin/canary", answers.CanaryAnswer)


def promote(bundle: str, name: str | None, force: bool) -> Call[answers.PointerAnswer]:
    """A call that gives a bundle a name."""
    body = {"bundle": bundle, "name": name, "force": force}
    return Call("POST", "/v1/admin/promote", answers.PointerAnswer, body)


def rollback(name: str) -> Call[answers.PointerAnswer]:
    """A call that gives a name back; sent twice it goes back twice."""
    return Call("POST", "/v1/admin/rollback", answers.PointerAnswer, {"name": name}, safe=False)


def canary(asked: Mapping[str, Any] | None) -> Call[answers.CanaryAnswer]:
    """A call that has a bundle tried, or nothing."""
    return Call("POST", "/v1/admin/canary", answers.CanaryAnswer, {"canary": asked})
