"""A service that ends when its last request has, and one that could not begin."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from raysys.serving.pauses import let_go

if TYPE_CHECKING:
    from raysys.serving.service import Service

_REST_S: Final = 10.0
_LONGEST_REST_S: Final = 600.0


class Lease:
    """A service and how many requests are at it; closed when it is retired and the last one ends.

    Args:
        service: warm.
    """

    def __init__(self, service: Service) -> None:
        self.service = service
        self._lock = threading.Lock()
        self._users = 0
        self._retired = False

    def take(self) -> bool:
        """Begin to use it; False: it is about to close."""
        with self._lock:
            self._users += not self._retired
            return not self._retired

    def give_back(self) -> None:
        """One use has ended."""
        with self._lock:
            self._users -= 1
            ended = self._retired and not self._users
        if ended:
            self._close()

    def retire(self) -> None:
        """Close it as soon as nobody uses it."""
        with self._lock:
            ended = not self._users and not self._retired
            self._retired = True
        if ended:
            self._close()

    def _close(self) -> None:
        # it may wait for a disk, and whoever gave back last has an answer to send
        threading.Thread(target=self._end, name="close", daemon=True).start()

    def _end(self) -> None:
        try:
            self.service.close()
        finally:
            let_go()


@dataclass(frozen=True)
class Rest:
    """A bundle that could not be loaded is left alone for a while: trying costs memory and time.

    Attributes:
        why: it could not.
        until: `time.monotonic()` before which nobody tries again.
        pause: seconds; doubled by each failure, up to ten minutes.
    """

    why: str
    until: float
    pause: float

    @classmethod
    def after(cls, before: Rest | None, why: str) -> Rest:
        """From now on, longer than the rest before."""
        pause = _REST_S if before is None else min(2 * before.pause, _LONGEST_REST_S)
        return cls(why, time.monotonic() + pause, pause)
