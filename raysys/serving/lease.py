"""A service that ends when its last request has."""

from __future__ import annotations

import threading

from raysys.serving.service import Service


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
        threading.Thread(target=self.service.close, name="close", daemon=True).start()
