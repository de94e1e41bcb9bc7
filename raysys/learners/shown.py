"""Examples that are lists as somebody saw them: what learners need that undo position bias.

The place at which a candidate was shown is a column of the examples (1 for the first, NaN where
it was not shown). It is no feature: when serving, nothing has been shown yet.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from raysys.errors import UserError
from raysys.features.batch import Batch
from raysys.learners.validation import require_columns


def in_shown_order(batch: Batch, column: str, *, where: str) -> Batch:
    """Rows of each request by the position they were shown at, as far as none is missing.

    XGBoost takes a row's index within its request for its position, so whatever comes after a
    gap (thinned candidates, a second page without the first) is left out, and so is what was not
    shown. Requests may be left without rows, or without a positive label.

    Args:
        batch: labelled rows.
        column: holds the position.
        where: the settings, for errors.

    Raises:
        UserError: no such column, or no request has anything at position 1.
    """
    require_columns([column], batch.names, where=where)
    position = np.nan_to_num(batch.column(column), nan=np.inf)
    order = np.lexsort((position, batch.group))
    place = np.arange(len(batch)) - batch.offsets[:-1][batch.group] + 1
    kept = order[position[order] == place]  # once a place is missing, none fits any more
    if not len(kept):
        raise UserError(
            f"no request has a candidate whose {column!r} is 1",
            where=where,
            mend="position debiasing needs impressions with their positions in the log",
        )
    return batch.take_rows(kept)


def one_list_a_click(batch: Batch, weight: npt.NDArray[np.float32]) -> Batch:
    """Every labelled row as a request of its own, with all other rows of its request as negatives.

    So each click can have a weight of its own in libraries that weigh requests: with inverse
    propensities the loss is, in expectation, that of clicks without position bias (Joachims et
    al., WSDM 2017, eq. 5; for NDCG's gain Agarwal et al., SIGIR 2019).

    Args:
        batch: labelled rows; label above 0 is a click.
        weight: float32[n], of each row; only those of clicks are read. The rows' own weights are
            multiplied by it.
    """
    assert batch.label is not None and batch.weight is not None
    click = np.flatnonzero(batch.label > 0)
    request = batch.group[click]
    sizes = batch.sizes[request]
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    rows = np.repeat(batch.offsets[request] - offsets[:-1], sizes) + np.arange(offsets[-1])
    lists = batch.take_requests(request)
    clicked = rows == np.repeat(click, sizes)
    return replace(
        lists,
        label=np.where(clicked, batch.label[rows], np.float32(0)),
        weight=np.repeat(batch.weight[click] * weight[click], sizes).astype(np.float32),
    )
