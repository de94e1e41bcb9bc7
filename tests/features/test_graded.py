"""Labels of logged examples: credited, cut at their fold's end, whatever their row is."""

import numpy as np
import pytest

from raysys.features.graded import label_rows
from raysys.features.labels import LabelSettings
from raysys.features.log import EventColumns
from raysys.features.numbered import LogSlice
from raysys.schema import EVENT_TYPES

HOUR = 3_600_000


def log_of(*events):
    """(user, item, type, hour, answer): rows of a slice, in time order."""
    events = sorted(events, key=lambda one: one[3])
    n = len(events)
    user, item, kind, hour, answer = (list(column) for column in zip(*events, strict=True))
    unknown = np.full(n, np.nan)
    columns = EventColumns(
        user=np.array(user, np.int32),
        item=np.array(item, np.int32),
        kind=np.array([EVENT_TYPES.index(k) for k in kind], np.int8),
        time=(np.array(hour) * HOUR).astype(np.int64),
        quantity=unknown,
        price=unknown,
        store=np.full(n, -1, np.int32),
        order=np.zeros(n, np.int64),
        session=np.array(user, np.int32),
    )
    return LogSlice(
        0,
        columns,
        np.full(n, -1, np.int32),
        np.array(answer, np.int64),
        np.full(n, np.nan, np.float32),
    )


SETTINGS = LabelSettings(gains={"click": 1.0, "purchase": 5.0})


def test_an_impression_is_worth_what_is_credited_to_it():
    rows = log_of(
        (0, 1, "impression", 1, 0), (0, 2, "impression", 1, 0), (0, 1, "click", 1.5, 0),
        (0, 1, "purchase", 9, 0), (1, 1, "impression", 2, 0), (1, 1, "click", 4, 0),
    )  # fmt: skip
    gains = label_rows(rows, SETTINGS, (0, 100 * HOUR), HOUR)
    # the other user's click came an hour too late
    assert gains.tolist() == [5.0, 0.0, 1.0, 0.0, 1.0, 5.0]


def test_what_happens_after_the_fold_is_not_known_in_it():
    rows = log_of((0, 1, "impression", 9, 0), (0, 1, "purchase", 11, 0), (0, 1, "view", 9.5, 0))
    whole = label_rows(rows, SETTINGS, (0, 20 * HOUR), 5 * HOUR)
    cut = label_rows(rows, SETTINGS, (0, 10 * HOUR, 20 * HOUR), 5 * HOUR)
    assert whole.tolist() == [5.0, 5.0, 5.0]
    assert cut.tolist() == [0.0, 0.0, 5.0]  # the impression, the view, the purchase
    assert label_rows(rows, SETTINGS, (12 * HOUR, 20 * HOUR), HOUR).tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("answer", [7, -7, np.iinfo(np.int64).min])
def test_the_answer_that_the_log_names_gets_it(answer):
    rows = log_of(
        (0, 1, "impression", 1, answer), (0, 1, "impression", 2, 0), (0, 1, "click", 1.9, answer),
        (0, 1, "purchase", 2.5, answer),
    )  # fmt: skip
    gains = label_rows(rows, SETTINGS, (0, 100 * HOUR), HOUR)
    assert gains[[0, 2]].tolist() == [5.0, 0.0]  # two impressions; the click lies between
