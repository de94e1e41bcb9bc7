"""The periods and folders between which drift is measured, as options name them."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import polars as pl
import pyarrow as pa

from raysys.errors import UserError
from raysys.features.drift import Sample, sample_rows
from raysys.features.examples import Examples
from raysys.storage import read_manifest


def _period(words: str, features: Path, seed: int) -> Sample:
    """Sample the candidates of a period, as `AuditOptions` has it."""
    place, _, part = words.rpartition("#")
    if not place and _is_folder(part):
        place, part = part, "all"
    if place:
        features = _features_folder(Path(place))
    manifest = read_manifest(features)
    folds = manifest.figures["folds"]
    named = {
        "train": list(folds["train"]),
        "validation": [folds["validation"]],
        "report": [folds["report"]],
    }
    named["all"] = [fold for group in named.values() for fold in group]
    first, dots, last = part.partition("..")
    if part not in named and not dots:
        raise UserError(
            f"no such period: {words!r}",
            where="raysys features audit",
            mend=f"give {', '.join(named)}, days as FROM..TO, or a features folder",
        )
    examples = Examples(features, tuple(int(fold) for fold in named.get(part, named["all"])))
    table = examples.requests()
    if dots:
        start, end = _day(first, words), _day(last, words) + dt.timedelta(days=1)
        moments = pl.Series(table["timestamp"]).dt.replace_time_zone(None)
        table = table.filter(pa.array(((moments >= start) & (moments < end)).to_numpy()))
    told = part if not place else f"{place}, {part}"
    span = ""
    if table.num_rows and not dots:
        moments = table["timestamp"].to_numpy()
        span = f" ({str(moments.min())[:10]} to {str(moments.max())[:10]})"
    return sample_rows(
        features,
        table["request"].to_numpy(),
        examples.files("examples"),
        seed=seed,
        words=f"{told}{span}",
    )


def _is_folder(words: str) -> bool:
    return Path(words).is_dir() or "/" in words


def _features_folder(path: Path) -> Path:
    """The features folder that a path means: itself, or that of a workspace."""
    inner = path / "features"
    return inner if (inner / "manifest.json").is_file() else path


def _day(words: str, whole: str) -> dt.datetime:
    try:
        return dt.datetime.fromisoformat(words)
    except ValueError:
        raise UserError(
            f"not a day: {words!r}",
            where=f"raysys features audit: {whole}",
            mend="write days as 2026-01-31..2026-02-28",
        ) from None
