"""Position bias of a numbered log: what was shown where, what was clicked, and the curve of it.

The users are dealt into parts; of each part a task keeps the impressions with a position and
whether they were clicked, and a last task estimates from all of them. Pieces appear whole or not
at all, so a stage that was killed goes on where it was:

    shown-00000-of-00004.arrow …   impressions of a part: query, item, position, user, click
    position_bias.html             the curve
    position_bias.json             the curve as a plan's `examination` reads it; written last
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import polars as pl

from raysys.errors import UserError
from raysys.features.attribution import IMPRESSION, Touches, attribute
from raysys.features.chosen import share_of
from raysys.features.labels import LabelSettings
from raysys.features.numbered import LogSlice, NumberedLog
from raysys.features.position_bias import (
    PositionBiasSettings,
    Propensities,
    estimate_propensities,
)
from raysys.features.position_report import write_position_report
from raysys.schema import EVENT_TYPES
from raysys.storage import write_atomic

CURVE: Final = "position_bias.json"
"""What the estimate is called, in the workspace too: the `examination` of a plan may name it."""
PAGE: Final = "position_bias.html"

_WHERE: Final = "features: position_bias"
_CLICK: Final = EVENT_TYPES.index("click")
_CLICKS: Final = np.isin(EVENT_TYPES, ("click", "favorite", "cart", "purchase"))
_SHOWN: Final = {
    "query": pl.Int32,
    "item": pl.Int32,
    "position": pl.Int32,
    "user": pl.Int32,
    "click": pl.Boolean,
}


def shown_and_clicked(
    log: NumberedLog, labels: LabelSettings, end: int, part: int = 0, parts: int = 1
) -> tuple[pl.DataFrame, int]:
    """Logged impressions of a part's users, and whether each was clicked.

    A click, favorite, cart or purchase before `end` counts, credited as `labels` say; but to one
    impression alone, since it was clicked at one position: with `touch: all` to the last.
    Impressions whose window for clicks reaches beyond `end` are left out, and inferred ones, which
    nobody knows to have been shown.

    Args:
        log: what happened.
        labels: windows, which impression gets an outcome, and whether sessions bound it.
        end: UTC ms; nothing from then on is read.
        part, parts: whose users.

    Returns:
        the impressions with a position: query (-1 where there was none: all these are one
        surface), item, position from 1, user as Int32, and click; and how many impressions there
        were, with a position or without.
    """
    labels = labels.model_copy(update={"touch": "last"}) if labels.touch == "all" else labels
    columns = [_touched(each, part, parts) for each in log.between(log.first, end)]
    if not columns:
        return pl.DataFrame(schema=_SHOWN), 0
    kept = {name: np.concatenate([one[name] for one in columns]) for name in columns[0]}
    touches = Touches(
        *(kept[name] for name in ("user", "item", "kind", "time", "session", "request"))
    )
    clicked = np.zeros(len(touches), dtype=np.bool_)
    clicked[attribute(touches, labels).impression] = True
    settled = end - labels.windows_ms[_CLICK]
    shown = (touches.kind == IMPRESSION) & (touches.time < settled)
    rows = np.flatnonzero(shown & (kept["position"] >= 1))
    names = ("query", "item", "position", "user")
    frame = pl.DataFrame({**{name: kept[name][rows] for name in names}, "click": clicked[rows]})
    return frame, int(shown.sum())


def write_shown(
    log: NumberedLog, labels: LabelSettings, end: int, folder: Path, part: int, parts: int
) -> dict[str, Any]:
    """Write `shown_and_clicked` of a part, once; says how many impressions there were."""
    path = _piece(folder, part, parts)
    told = path.with_suffix(".json")  # written last
    if not told.exists():
        folder.mkdir(parents=True, exist_ok=True)
        frame, impressions = shown_and_clicked(log, labels, end, part, parts)
        frame.write_ipc(path, compression="uncompressed")
        write_atomic(told, json.dumps({"impressions": impressions}))
    content: dict[str, Any] = json.loads(told.read_text(encoding="utf-8"))
    return content


def write_curve(
    settings: PositionBiasSettings, end: int, impressions: int, folder: Path, parts: int
) -> None:
    """Estimate from all parts that `write_shown` left, and write curve and page, once.

    Args:
        settings: method, positions, bootstrap.
        end: UTC ms, where what is estimated from ends.
        impressions: how many there were, with a position or without.
        folder: of the parts; parts: how many there are.

    Raises:
        UserError: the impressions cannot tell; says what is missing.
    """
    if (folder / CURVE).exists():
        return
    shown = pl.concat([pl.read_ipc(_piece(folder, part, parts)) for part in range(parts)])
    found = estimate_curve(shown, settings, end, impressions)
    write_position_report([found], folder / PAGE)
    curve = {
        "examination": found.of(np.arange(1, len(found.value) + 1)).tolist(),
        "method": found.method,
        "until": str(np.datetime64(end, "ms")),
        "positions": [
            {
                "position": at + 1,
                "propensity": _known(found.value[at]),
                "low": _known(found.low[at]),
                "high": _known(found.high[at]),
                "impressions": int(found.impressions[at]),
                "clicks": int(found.clicks[at]),
            }
            for at in range(len(found.value))
        ],
    }
    write_atomic(folder / CURVE, json.dumps(curve, indent=2, allow_nan=False) + "\n")


def estimate_curve(
    shown: pl.DataFrame, settings: PositionBiasSettings, end: int, impressions: int
) -> Propensities:
    """Propensities of what `shown_and_clicked` found; the bootstrap draws users.

    The outcome does not depend on the order of the rows.

    Raises:
        UserError: see `write_curve`.
    """
    query, item, position, user, click = (shown[name].to_numpy() for name in _SHOWN)
    counted = position <= settings.positions
    until = f"before {np.datetime64(end, 'ms').astype('datetime64[s]')}, where validation begins"
    mend = (
        "send the `position` (from 1) of every impression and the clicks that follow, take a "
        "longer log, or leave `position_bias` out: docs/labels.md says what each log allows"
    )
    clicks, places = int(click[counted].sum()), len(np.unique(position[counted]))
    told = f"of {impressions:,} logged impressions {until}, {int(counted.sum()):,} have a position"
    if places < 2 or not clicks:
        told += f" up to {settings.positions}: {places} positions, {clicks:,} clicks"
        raise UserError(f"too little to estimate from: {told}", where=_WHERE, mend=mend)
    try:
        found = estimate_propensities(query, item, position, click, settings, cluster=user)
    except UserError as error:
        raise UserError(f"{error.what} ({told})", where=_WHERE, mend=error.mend or mend) from None
    if not (found.value[1:] > 0).any():  # 0, or unknown, everywhere: no curve to divide by
        raise UserError(
            f"what was shown at position 1 and at others was never clicked at others ({told})",
            where=_WHERE,
            mend=mend,
        )
    return found


def read_curve(folder: Path) -> dict[str, Any]:
    """What `write_curve` wrote."""
    content: dict[str, Any] = json.loads((folder / CURVE).read_text(encoding="utf-8"))
    return content


def _touched(each: LogSlice, part: int, parts: int) -> dict[str, npt.NDArray[Any]]:
    """Columns of a slice's logged impressions, and of what counts as a click, of some users."""
    events = each.events
    logged = (events.kind == IMPRESSION) & np.isnan(each.probability)
    rows = np.flatnonzero(
        (logged | _CLICKS[events.kind]) & (events.item >= 0) & share_of(events.user, part, parts)
    )
    answer = each.answer[rows]
    names = ("user", "item", "kind", "time", "query", "position")
    return {
        **{name: getattr(events, name)[rows] for name in names},
        "session": events.session[rows].astype(np.int64),
        # as in `graded`: hashes may be negative, which here means that there is none
        "request": np.where(answer == 0, -1, answer & np.int64(2**63 - 1)),
    }


def _piece(folder: Path, part: int, parts: int) -> Path:
    """Named by how many there are too: a run that goes on with other CPUs deals users anew."""
    return folder / f"shown-{part:05d}-of-{parts:05d}.arrow"


def _known(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
