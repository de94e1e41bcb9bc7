"""What the pages ask of the system behind them: the calls of HTTP's version 1, in process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from raysys.catalogue import Catalogue


class Refused(Exception):  # noqa: N818  it is an answer, though not the one hoped for
    """A call was answered with a problem.

    Args:
        status: of HTTP.
        detail: what is wrong and how to mend it.
        retry_after_s: when to try again; None: it does not say.
    """

    def __init__(self, status: int, detail: str, retry_after_s: int | None = None) -> None:
        super().__init__(detail)
        self.status, self.detail, self.retry_after_s = status, detail, retry_after_s

    @property
    def busy(self) -> bool:
        """Whether the same may succeed in a moment."""
        return self.status in (429, 503)

    @property
    def headers(self) -> dict[str, str]:
        """What a page that says so tells browsers."""
        return {"Retry-After": str(self.retry_after_s or 1)} if self.busy else {}


class Answers(Protocol):
    """The system behind the pages; serving has the one that answers from a bundle."""

    @property
    def catalogue(self) -> Catalogue:
        """Every item of the shop."""

    def users(self, count: int) -> list[str]:
        """Ids of users that much is known of."""

    async def ask(self, call: str, body: dict[str, Any], *, shown: bool = True) -> dict[str, Any]:
        """The JSON that POST /v1/CALL answers to a body: recommend, search, similar or rank.

        Args:
            call, body: of it.
            shown: whether the visitor sees the list; if not, it is recorded nowhere as shown.

        Raises:
            Refused: the call is answered with a problem.
        """

    async def profile(self, user_id: str) -> dict[str, Any] | None:
        """The JSON of GET /v1/users/USER_ID/profile; None if nothing is known."""

    async def record(self, events: Sequence[dict[str, Any]]) -> bool:
        """Take events as POST /v1/events does; False where this deployment takes none."""
