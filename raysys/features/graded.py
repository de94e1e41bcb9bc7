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
    gains = settings.by_kind
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
    out = np.zeros(len(rows), dtype=np.float32)
    for start, end in pairwise(folds):
        grades = grade(touches, credited, settings, end=end)
        inside = events.time[grades.impression] >= start
        out[grades.impression[inside]] = grades.label[inside]
        known = np.flatnonzero(events.time < end)
        others = (events.kind[known] != IMPRESSION) & (events.time[known] >= start)
        if others.any():
            followed = label_in_session(rows.take(known), gains, window_ms)
            out[known[others]] = followed[others]
    return out
