"""A challenger in the shadow: answers after the champion has, seen by nobody, compared on disk.

One JSON line a comparison, in files of their own for each replica: `BUNDLE-REPLICA.jsonl`, and the
one before it as `….1`.
"""

from __future__ import annotations

import json
import logging
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from raysys.serving.api import ListAnswer

log = logging.getLogger("raysys")

MAX_WAITING = 32  # comparisons; beyond that they are left out, so that answers keep their CPU
MAX_BYTES = 64 << 20


class Shadow:
    """Compares the answers of one challenger; safe to use from several threads.

    Args:
        folder: of the lines.
        bundle: id of the challenger.
    """

    def __init__(self, folder: Path, bundle: str) -> None:
        self.path = folder / f"{bundle}-{uuid.uuid4().hex[:8]}.jsonl"
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="shadow")
        self._room = threading.BoundedSemaphore(MAX_WAITING)
        self._lock = threading.Lock()
        self.compared = self.left_out = self.failed = 0
        self._overlap = self._first = 0.0

    def offer(
        self,
        call: str,
        asked: Any,
        answer: Any,
        again: Callable[[], Any],
        done: Callable[[], None],
    ) -> None:
        """Compare an answer with the challenger's, some time soon, if there is room.

        Args:
            call: which kind of list.
            asked: the request.
            answer: what the champion said.
            again: asks the challenger.
            done: called at the end, in any case.
        """
        if not self._room.acquire(blocking=False):
            self.left_out += 1
            done()
            return

        def work() -> None:
            try:
                self._compare(call, asked, answer, again)
            except Exception:
                self.failed += 1
                log.exception("the challenger failed in the shadow")
            finally:
                self._room.release()
                done()

        try:
            self._pool.submit(work)
        except RuntimeError:  # closed meanwhile
            self._room.release()
            done()

    def told(self) -> dict[str, Any]:
        """How alike the lists are."""
        n = max(1, self.compared)
        return {
            "compared": self.compared,
            "left_out": self.left_out,
            "failed": self.failed,
            "overlap": round(self._overlap / n, 4),  # mean share of items that both lists have
            "same_first": round(self._first / n, 4),
            "log": str(self.path),
        }

    def close(self) -> None:
        """Finish what waits, in its own time, and take nothing more."""
        self._pool.shutdown(wait=False)

    def _compare(self, call: str, asked: Any, answer: Any, again: Callable[[], Any]) -> None:
        began = time.perf_counter()
        other = again()
        took = (time.perf_counter() - began) * 1000
        answer, other = (_model(each) for each in (answer, other))
        ours = [item.item_id for item in answer.items]
        theirs = [item.item_id for item in other.items]
        with self._lock:
            self.compared += 1
            self._overlap += len(set(ours) & set(theirs)) / max(1, len(ours))
            self._first += ours[:1] == theirs[:1]
        line = {
            "request_id": answer.request_id,
            "at": time.time_ns() // 1_000_000,
            "call": call,
            "user_id": asked.user_id,
            "champion": _side(answer, answer.took_ms),
            "challenger": _side(other, round(took, 2)),
        }
        self._write(json.dumps(line, ensure_ascii=False))

    def _write(self, line: str) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
            full = file.tell() > MAX_BYTES
        if full:
            self.path.replace(self.path.with_name(f"{self.path.name}.1"))


def _model(answer: Any) -> Any:
    return ListAnswer.model_validate(answer) if isinstance(answer, dict) else answer


def _side(answer: Any, took_ms: float) -> dict[str, Any]:
    return {
        "bundle": answer.bundle,
        "items": [[item.item_id, item.score] for item in answer.items],
        "degraded": answer.degraded,
        "took_ms": took_ms,
    }
