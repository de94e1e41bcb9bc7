"""Who is looking: user, session and cart, in cookies; no store is needed."""

from __future__ import annotations

import base64
import json
import secrets
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import parse_qs

from fastapi import Request
from fastapi.responses import Response

_COOKIE = "visit"
_SEEN = 8
_CART = 50
_ROOM = 3800
_KEPT_S = 30 * 24 * 3600
_STRANGER = "visitor-"


@dataclass(frozen=True)
class Visit:
    """What the shop remembers of a visitor between two pages.

    Attributes:
        user: id; one that was made up for a new visitor begins with `visitor-`.
        session: id.
        cart: item ids, each once, oldest first.
        seen: item ids looked at in this session, newest first.
    """

    user: str
    session: str
    cart: tuple[str, ...] = ()
    seen: tuple[str, ...] = ()

    @property
    def is_new(self) -> bool:
        """Whether the visitor is nobody that the log knows."""
        return self.user.startswith(_STRANGER)

    @classmethod
    def begin(cls, user: str | None = None) -> Visit:
        """A new session, of a user or of somebody new."""
        return cls(user or _STRANGER + secrets.token_hex(6), secrets.token_hex(8))

    @classmethod
    def of(cls, request: Request) -> Visit:
        """What the cookie says; a new visit where it is missing or was tampered with."""
        try:
            content = json.loads(base64.urlsafe_b64decode(request.cookies[_COOKIE]))
            visit = cls(
                str(content["user"])[:200], str(content["session"])[:200],
                _ids(content["cart"], _CART), _ids(content["seen"], _SEEN),
            )  # fmt: skip
        except (KeyError, ValueError, TypeError):
            return cls.begin()
        return visit if visit.user and visit.session else cls.begin()

    def looked_at(self, item_id: str) -> Visit:
        """With an item as the newest seen."""
        rest = tuple(seen for seen in self.seen if seen != item_id)
        return replace(self, seen=(item_id, *rest)[:_SEEN])

    def with_item(self, item_id: str) -> Visit:
        """With an item in the cart."""
        if item_id in self.cart:
            return self
        return replace(self, cart=(*self.cart, item_id)[-_CART:])

    def without(self, item_id: str) -> Visit:
        """With an item taken out of the cart."""
        return replace(self, cart=tuple(held for held in self.cart if held != item_id))

    def keep(self, response: Response) -> None:
        """Write the cookie."""
        value = self._cookie()
        short = self
        # ids may be long, and browsers drop a cookie over 4,096 bytes
        while len(value) > _ROOM and (short.cart or short.seen):
            short = replace(short, cart=short.cart[1:], seen=short.seen[:-1])
            value = short._cookie()
        if len(value) > _ROOM:  # no user or session of ours is as long
            value = Visit.begin()._cookie()
        response.set_cookie(_COOKIE, value, max_age=_KEPT_S, httponly=True, samesite="lax")

    def _cookie(self) -> str:
        content = {"user": self.user, "session": self.session, "cart": self.cart, "seen": self.seen}
        return base64.urlsafe_b64encode(json.dumps(content).encode()).decode()

    def event(self, kind: str, **more: Any) -> dict[str, Any]:
        """One event of this visitor as POST /v1/events takes it; its moment is when it arrives."""
        return {
            "event_id": secrets.token_hex(12),
            "event_type": kind,
            "user_id": self.user,
            "session_id": self.session,
            **more,
        }


def whole_number(text: str) -> int | None:
    """A number of up to six digits out of a link or a form; None: it is something else."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 6 else None


async def form_of(request: Request) -> dict[str, str]:
    """A form's fields, the last of each name."""
    raw = (await request.body()).decode("utf-8", "replace")
    return {name: values[-1] for name, values in parse_qs(raw, max_num_fields=100).items()}


def _ids(found: Any, most: int) -> tuple[str, ...]:
    if not isinstance(found, list):
        raise TypeError("a list of ids is expected")
    return tuple(str(each)[:200] for each in found[:most])
