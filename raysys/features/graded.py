"""Labels of logged examples: impressions by what is credited to them, other rows by what followed.

A label never knows more than its fold: what happens after the fold's end is as if it had not
happened, so a model that is judged on the next fold was not told how that fold went.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from raysys.features.attribution import IMPRESSION, Touches, attribute, grade
from raysys.features.labels import LabelSettings
from raysys.features.numbered import LogSlice
from raysys.features.shown import label_in_session


def label_rows(
    rows: LogSlice, settings: LabelSettings, folds: Sequence[int], window_ms: int
) -> npt.NDArray[np.float32]:
    """Gain of every row: float32[n], 0 before the first fold and after the last.

    Args:
        rows: all events of some users, in time order.
        settings: gains, windows, and which impression gets an outcome.
        folds: first moment (UTC ms) of every fold, then the end of the last.
        window_ms: for rows that are no impressions, how long after them something of the same
            item and session still counts as their outcome.
    """
    events = rows.events
    out = np.zeros(len(rows), dtype=np.float32)
    shown = events.kind == IMPRESSION
    if shown.any():
        _of_impressions(rows, settings, folds, out)
    fold = np.searchsorted(folds, events.time, side="right")
    others = np.flatnonzero(~shown & (fold > 0) & (fold < len(folds)))
    if len(others):
        last = np.asarray(folds, dtype=np.int64)[np.minimum(fold, len(folds) - 1)] - 1
        out[others] = label_in_session(rows, settings.by_kind, window_ms, last)[others]
    return out


def _of_impressions(
    rows: LogSlice, settings: LabelSettings, folds: Sequence[int], out: npt.NDArray[np.float32]
) -> None:
    """Gains of the impressions of each fold, as they stand at its end, into `out`."""
    events, answer = rows.events, rows.answer
    touches = Touches(
        user=events.user,
        item=events.item,
        kind=events.kind,
        time=events.time,
        session=events.session.astype(np.int64),
        # hashes may be negative, and the two halves of their range do not meet in one user
        request=np.where(answer == 0, -1, answer & np.int64(2**63 - 1)),
    )
    credited = attribute(touches, settings)
    for start, end in pairwise(folds):
        grades = grade(touches, credited, settings, end=end)
        inside = events.time[grades.impression] >= start
        out[grades.impression[inside]] = grades.label[inside]
