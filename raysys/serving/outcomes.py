"""Events joined to the answers they react to, and counted by surface, experiment and arm.

Every replica follows the whole event log and remembers what it answered itself. So an event is
joined by the replica that gave the answer, whichever took the event in, and by no other.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from raysys.schema import EVENT_TYPES
from raysys.serving.metrics import Metrics

NO_EXPERIMENT: Final = "none"
"""The experiment of answers that are in none; their arm is the name of the bundle."""

_KEPT: Final = 50_000  # answers, some 300 bytes each


@dataclass(slots=True)
class _Answered:
    surface: str
    arms: tuple[tuple[str, str], ...]
    counted: set[str] = field(default_factory=set)


class Outcomes:
    """Answers of one replica, and the events that came back; safe to use from several threads.

    Args:
        metrics: gives what counts: another object when another bundle answers.
        keep: answers that are remembered, the newest.
    """

    def __init__(self, metrics: Callable[[], Metrics], keep: int = _KEPT) -> None:
        self._metrics, self._keep = metrics, keep
        self._answers: OrderedDict[str, _Answered] = OrderedDict()
        self._lock = threading.Lock()

    def answered(
        self, request_id: str, surface: str, arms: Mapping[str, str], seconds: float, status: str
    ) -> None:
        """A list went out.

        Args:
            request_id: which events send back.
            surface: of the list.
            arms: experiment → arm.
            seconds: that it took.
            status: `ok`, `degraded` or `failed` (the arm did, and the champion answered).
        """
        metrics = self._metrics()
        for experiment, arm in arms.items():
            metrics.count(
                "raysys_arm_answers",
                surface=surface,
                experiment=experiment,
                arm=arm,
                status=status,
            )
            metrics.observe("raysys_arm_seconds", seconds, experiment=experiment, arm=arm)
        with self._lock:
            self._answers[request_id] = _Answered(surface, tuple(arms.items()))
            if len(self._answers) > self._keep:
                self._answers.popitem(last=False)

    def heard(self, events: Sequence[Mapping[str, Any]]) -> None:
        """The log has these: each counts once for the arms of its answer, if it was ours."""
        metrics = self._metrics()
        for event in events:
            kind, request_id = event["event_type"], event.get("request_id")
            if request_id is None or kind not in EVENT_TYPES:
                continue
            with self._lock:
                answer = self._answers.get(request_id)
                # a bundle that takes another's place reads some of the log again
                if answer is None or event["event_id"] in answer.counted:
                    continue
                answer.counted.add(event["event_id"])
            for experiment, arm in answer.arms:
                metrics.count(
                    "raysys_arm_events",
                    surface=answer.surface,
                    experiment=experiment,
                    arm=arm,
                    event=kind,
                )
