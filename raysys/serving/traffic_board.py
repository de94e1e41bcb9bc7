"""What the replicas of a deployment tell each other of their traffic, for the console.

    registry/serving/traffic/REPLICA.json

Each writes its last minute and its counts every few seconds; what is older than `FRESH_S` is of a
replica that has ended. It is for people to look at: metrics are Ray's.
"""

from __future__ import annotations

import contextlib
import json
import logging
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from raysys.serving.traffic import Traffic, facts_of
from raysys.storage import write_atomic
from raysys.web.operations import CallFacts

log = logging.getLogger("raysys")

FOLDER: Final = "serving/traffic"
EVERY_S: Final = 2.0
FRESH_S: Final = 10.0
_GONE_S: Final = 3600.0

Counts = dict[str, dict[str, int]]


class TrafficBoard:
    """One replica's place on the board, and its view of all.

    Args:
        registry: its root.
        traffic: of this replica.
        counts: gives what this replica counted since it started; see `Metrics.read`.
    """

    def __init__(self, registry: Path, traffic: Traffic, counts: Callable[[], Counts]) -> None:
        self._folder, self._name = registry / FOLDER, uuid.uuid4().hex
        self._traffic, self._counts = traffic, counts
        self._seen: dict[str, tuple[float, float]] = {}  # what it said last, and when we saw it
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Tell the others from now on."""
        self._thread = threading.Thread(target=self._keep_telling, name="traffic", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End, and leave the board."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join(timeout=EVERY_S)
        with contextlib.suppress(OSError):  # it is forgotten by its age
            self._place(self._name).unlink(missing_ok=True)

    def tell(self) -> None:
        """Write this replica's place.

        Raises:
            OSError: no space, or no leave.
        """
        told = {"at": time.time(), "traffic": self._traffic.told(), "counts": self._counts()}
        self._folder.mkdir(parents=True, exist_ok=True)
        write_atomic(self._place(self._name), json.dumps(told))

    def look(self) -> tuple[int, list[CallFacts], Counts]:
        """How many replicas there are, their calls together, and their counts added up."""
        others = self._others()
        facts = facts_of([self._traffic.told(), *(each["traffic"] for each in others)])
        counts: Counts = {}
        for one in (self._counts(), *(each["counts"] for each in others)):
            for name, values in one.items():
                sums = counts.setdefault(name, {})
                for tags, count in values.items():
                    sums[tags] = sums.get(tags, 0) + int(count)
        return 1 + len(others), facts, counts

    def _others(self) -> list[dict[str, Any]]:
        found, seen = [], {}
        for path in sorted(self._folder.glob("*.json")):
            if path.stem == self._name:
                continue
            try:
                told = json.loads(path.read_text(encoding="utf-8"))
                at, now = float(told["at"]), time.monotonic()
                # by our own clock since it last said something new: theirs may stand elsewhere
                before = self._seen.get(path.stem)
                first = now - max(0.0, time.time() - at) if before is None else now
                seen[path.stem] = before if before and before[0] == at else (at, first)
                age = now - seen[path.stem][1]
                if age > _GONE_S:
                    path.unlink(missing_ok=True)  # it was killed
                elif age <= FRESH_S:
                    facts_of([told["traffic"]])  # raises where it is of another version
                    found.append(told)
            except (OSError, ValueError, KeyError, TypeError, IndexError):
                continue  # another one's place is not worth an error on somebody's page
        self._seen = seen
        return found

    def _place(self, name: str) -> Path:
        return self._folder / f"{name}.json"

    def _keep_telling(self) -> None:
        said = ""
        while not self._ended.wait(EVERY_S):
            try:
                self.tell()
                said = ""
            except Exception as error:  # the next try may work
                if str(error) != said:
                    log.warning("the console cannot be told of this replica's traffic: %s", error)
                said = str(error)
