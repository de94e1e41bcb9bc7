"""Exposures: which arm of which experiment a user got, written when the list was answered.

Rows of `schema.EXPOSURES` in segments of Parquet (`segment_writer`), as `raysys experiment analyse`
reads them. A row is small, and every answer leaves one an experiment: the analysis takes the first
of a user, the console counts them all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from raysys.experiments import Assignment
from raysys.experiments.drafting import BOTH
from raysys.schema import EXPOSURES
from raysys.serving.metrics import Metrics
from raysys.serving.segment_writer import SegmentArgs, SegmentWriter


class ExperimentArgs(SegmentArgs):
    """How experiments are served; which are is `user_config.experiments`.

    Attributes:
        exposures: folder of the exposures; a relative one lies under RAYSYS_HOME, null: `exposures`
            beside the registry.
        analyse_minutes: the console's figures are at most so old, once somebody looks.
        segment_s: a segment is written so often: exposures are small, and read over weeks.
    """

    exposures: str | None = None
    analyse_minutes: Annotated[float, Field(gt=0, le=1440)] = 5
    segment_s: Annotated[float, Field(gt=0)] = 30


@dataclass(frozen=True)
class Drafted:
    """Which arm brought what.

    Attributes:
        item_ids: from the top.
        teams: of each, 0 where the first arm brought it, 1 where the second did.
    """

    item_ids: list[str]
    teams: list[int]


class ExposureLog(SegmentWriter):
    """Takes exposures and writes them; safe to use from several threads.

    Args:
        args: how often.
        folder: absolute.
        metrics: gives what counts the written and the lost.
    """

    def __init__(self, args: ExperimentArgs, folder: Path, metrics: Callable[[], Metrics]) -> None:
        super().__init__(
            args,
            folder,
            EXPOSURES,
            lambda n, outcome: metrics().count("raysys_exposures", n, outcome=outcome),
            "exposures",
        )

    def served(
        self,
        assignments: Iterable[Assignment],
        who: str,
        attributes: Mapping[str, Mapping[str, str]],
        *,
        at: int,
        request_id: str,
        surface: str,
        bundle: str,
        drafted: Drafted | None = None,
    ) -> None:
        """A list was answered in these arms; never waits.

        Args:
            assignments: one an experiment.
            who: the id that was drawn.
            attributes: experiment → those of the user by which its effects are told apart.
            at: UTC ms, by the clock by which events are stamped.
            request_id: of the answer.
            surface: of the list.
            bundle: id of the one that answered.
            drafted: the list, if it was drafted from two; None: it was not.
        """
        for each in assignments:

            def record(each: Assignment = each) -> dict[str, Any]:
                mine = drafted if each.arm.name == BOTH else None
                return {
                    "request_id": request_id,
                    "experiment": each.experiment,
                    "arm": each.arm.name,
                    "user_id": who,
                    "timestamp": at,
                    "surface": surface,
                    "bundle": bundle,
                    "propensity": each.propensity,
                    "forced": each.forced,
                    "attributes": list(attributes.get(each.experiment, {}).items()),
                    "item_ids": None if mine is None else mine.item_ids,
                    "teams": None if mine is None else mine.teams,
                }

            self.note(record)
