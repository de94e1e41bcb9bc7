"""Who is looking: user, session and cart, in cookies; no store is needed.

What was looked at has a cookie of its own: a page that is slow to come must not put back the cart
as it was when the page was asked for.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import secrets
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import parse_qs

from fastapi import HTTPException, Request
from fastapi.responses import Response

_VISIT, _LOOKS = "visit", "seen"
_SEEN = 8
_CART = 50
_ROOM = 3800
_FIELDS = 100
_KEPT: dict[str, Any] = {"max_age": 30 * 24 * 3600, "samesite": "lax"}
_STRANGER = "visitor-"


@dataclass(frozen=True)
class Cookies:
    """How a deployment writes its cookies, and which it believes.

    Attributes:
        sign: the signature of a text, which no visitor can make; None: every cookie is believed.
        secure: browsers send them back over https alone.
        shoppers: a visitor may shop as one of the users that the pages name.
    """

    sign: Callable[[str], str] | None = None
    secure: bool = False
    shoppers: bool = True

    def seal(self, value: str) -> str:
        """A value as the cookie holds it."""
        return value if self.sign is None else f"{value}.{self.sign(value)}"

    def open(self, cookie: str) -> str:
        """The value that a cookie holds.

        Raises:
            ValueError: no page of this deployment gave it.
        """
        if self.sign is None:
            return cookie
        value, _, signature = cookie.rpartition(".")
        told = signature.encode("utf-8", "surrogateescape")  # whatever the cookie holds
        if not hmac.compare_digest(self.sign(value).encode(), told):
            raise ValueError("not signed by this deployment")
        return value

    def put(self, response: Response, request: Request, name: str, value: str, **how: Any) -> None:
        """Set one, out of reach of scripts; see Starlette's `set_cookie` for `how`."""
        secure = self.secure or request.url.scheme == "https"
        response.set_cookie(name, value, httponly=True, secure=secure, **how)


BELIEVED = Cookies()
"""Those of a deployment without keys: every one is."""


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
    def kept(cls, request: Request, cookies: Cookies) -> Visit | None:
        """What the cookies say; None where they are missing or were tampered with."""
        try:
            content = _unpacked(cookies.open(request.cookies[_VISIT]))
            user, session = _text(content["user"]), _text(content["session"])
            cart = _ids(content["cart"], _CART)
        except (KeyError, ValueError, TypeError):
            return None
        if not user or not session:
            return None
        if not cookies.shoppers and not user.startswith(_STRANGER):  # it was allowed before
            return None
        try:
            looks = _unpacked(request.cookies[_LOOKS])
            seen = _ids(looks["seen"], _SEEN) if looks["session"] == session else ()
        except (KeyError, ValueError, TypeError):
            seen = ()
        return cls(user, session, cart, seen)

    @classmethod
    def of(cls, request: Request, cookies: Cookies) -> Visit:
        """What the cookies say; a new visit where they say nothing."""
        return cls.kept(request, cookies) or cls.begin()

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

    def keep(
        self,
        response: Response,
        request: Request,
        cookies: Cookies,
        before: Visit | None = None,
    ) -> None:
        """Write the cookies that have changed.

        Args:
            response: gets them.
            request: that it answers.
            cookies: how they are written.
            before: see `kept`: what the visitor's browser has.
        """
        if before is None or before != replace(self, seen=before.seen):
            cart = self.cart
            # ids may be long, and browsers drop a cookie over 4,096 bytes
            while len(value := self._packed(cart=cart)) > _ROOM and cart:
                cart = cart[1:]
            if len(value) > _ROOM:  # no user or session of ours is as long
                value = Visit.begin()._packed(cart=())
            cookies.put(response, request, _VISIT, cookies.seal(value), **_KEPT)
        if before is None or (before.session, before.seen) != (self.session, self.seen):
            seen = self.seen
            while len(value := _packed({"session": self.session, "seen": seen})) > _ROOM and seen:
                seen = seen[:-1]
            if len(value) <= _ROOM:
                cookies.put(response, request, _LOOKS, value, **_KEPT)

    def _packed(self, cart: tuple[str, ...]) -> str:
        return _packed({"user": self.user, "session": self.session, "cart": cart})

    def event(self, kind: str, **more: Any) -> dict[str, Any]:
        """One event of this visitor as POST /v1/events takes it; its moment is when it arrives."""
        return {
            "event_id": secrets.token_hex(12),
            "event_type": kind,
            "user_id": self.user,
            "session_id": self.session,
            **more,
        }

    def bought(self, order: str, sale: dict[str, Any]) -> dict[str, Any]:
        """The purchase of an item within an order: the same again is the same event.

        Args:
            order: id.
            sale: `item_id`, and what it was sold for.
        """
        once = _once(order, sale["item_id"])
        return self.event("purchase", order_id=order, **sale) | {"event_id": once}

    def noticed(self, kind: str, item_id: str, **joined: Any) -> dict[str, Any]:
        """An item of a list seen or clicked: the same again is the same event.

        Args:
            kind: impression or click.
            item_id: which.
            joined: `request_id` and `position` of the list.
        """
        once = _once(self.session, str(joined.get("request_id", "")), item_id, kind)
        return self.event(kind, item_id=item_id, **joined) | {"event_id": once}


def new_order() -> str:
    """An id for what a form will buy: sent twice, the form buys once."""
    return secrets.token_hex(12)


def whole_number(text: str) -> int | None:
    """A number of up to six digits out of a link or a form; None: it is something else."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 6 else None


async def form_of(request: Request) -> dict[str, str]:
    """A form's fields, the last of each name.

    Raises:
        HTTPException: 400, it has more fields than any form of ours.
    """
    raw = (await request.body()).decode("utf-8", "replace")
    try:
        fields = parse_qs(raw, max_num_fields=_FIELDS)
    except ValueError:
        raise HTTPException(400, f"a form of more than {_FIELDS} fields") from None
    return {name: values[-1] for name, values in fields.items()}


def parsed(text: str | bytes) -> Any:
    """What JSON says that may come from anybody.

    Raises:
        ValueError: it is none, or nested beyond all measure.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _packed(content: dict[str, Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(content).encode()).decode()


def _unpacked(cookie: str) -> Any:
    """What `_packed` was given.

    Raises:
        ValueError: it is something else.
    """
    return parsed(base64.urlsafe_b64decode(cookie))


def _ids(found: Any, most: int) -> tuple[str, ...]:
    if not isinstance(found, list):
        raise TypeError("a list of ids is expected")
    return tuple(_text(each) for each in found[:most])


def _text(found: Any) -> str:
    """An id as it may go into an address.

    Raises:
        ValueError: JSON can say half a character, which no id holds.
    """
    text = str(found)[:200]
    text.encode()
    return text


def _once(*told: str) -> str:
    """An id of an event: what is told again has the same."""
    said = " ".join(told).encode("utf-8", "surrogatepass")  # ids of forms may hold anything
    return hashlib.blake2b(said, digest_size=12).hexdigest()
