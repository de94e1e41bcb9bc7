"""Train, validation and test: no text, query or group is ever on two sides.

Rows that share a group, or a text that differs by case and blanks only, belong together: they are
dealt as one. For relevance what counts is the query. The outcome depends on what the rows say and
on the seed, not on their order. Texts without a label can only teach: they are in train or nowhere.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
import polars as pl
from pydantic import Field, model_validator

from raysys.config import Settings
from raysys.datasets.labelled import QUARANTINE, Labelled
from raysys.errors import UserError

SPLITS: Final = ("train", "validation", "test")
_ALSO: Final = {"valid": "validation", "val": "validation", "dev": "validation"}
_SHOWN: Final = 5

Int64 = npt.NDArray[np.int64]
Float64 = npt.NDArray[np.float64]


class SplitSettings(Settings):
    """How rows are divided.

    Attributes:
        by: `given` (the sources say it; what they do not give is drawn from train), `stratified`
            (each label in the same shares), `random`, or `time` (the newest are the test); null:
            given if the sources say so, stratified where there are labels, else random.
        validation: share of the rows.
        test: share of the rows.
        names: what the split column says → train, validation or test, where it has other words.
        seed: of the draws.
    """

    by: Literal["given", "stratified", "random", "time"] | None = None
    validation: float = Field(0.15, gt=0, lt=1)
    test: float = Field(0.15, gt=0, lt=1)
    names: dict[str, Literal["train", "validation", "test"]] = {}
    seed: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _something_to_train_on(self) -> SplitSettings:
        if self.validation + self.test >= 0.95:
            raise ValueError("validation and test leave nothing to train on")
        return self


@dataclass(frozen=True)
class Divided:
    """Rows by split.

    Attributes:
        rows: those of `Labelled`, each with its split.
        aside: what could not stay, as `QUARANTINE`.
        by: how they were divided.
        notes: what a person should know, in words.
    """

    rows: pl.DataFrame
    aside: pl.DataFrame
    by: str
    notes: tuple[str, ...] = ()


def divide(labelled: Labelled, settings: SplitSettings, task: str) -> Divided:
    """Give every row its split.

    Raises:
        UserError: a split that is empty, a split column with unknown words, one label only.
    """
    rows, unit = labelled.rows, components(labelled.rows, task)
    known = np.ones(rows.height, dtype=bool)
    if task in ("classify", "sentiment"):
        known = rows["label"].is_not_null().to_numpy()
    unlabelled, theirs = rows.filter(~known), unit[~known]
    rows, unit = rows.filter(known), unit[known]
    by = settings.by or _usual(rows, task)
    asides: list[pl.DataFrame] = []
    if by == "given":
        side = _given(rows, unit, settings, task)
        kept = _highest(side, unit) == side
        reasons = np.array([f"also_in_{SPLITS[s]}" for s in _highest(side, unit)], dtype=object)
        asides.append(_aside(rows.filter(~kept), reasons[~kept]))
        rows, unit, side = rows.filter(kept), unit[kept], side[kept]
    elif by == "time":
        side = _by_time(rows, unit, settings)
    else:
        strata = _codes(rows["label"]) if by == "stratified" else np.zeros(rows.height, np.int64)
        side = _drawn(rows, unit, strata, (settings.test, settings.validation), settings.seed, task)
    rows = rows.with_columns(pl.Series("split", [SPLITS[s] for s in side], dtype=pl.String))
    notes: list[str] = []
    if task in ("classify", "sentiment"):
        rows, unseen = _without_unseen(rows, notes)
        asides.append(unseen)
        notes += _on_labels(rows)
    if unlabelled.height:
        kin = _highest(np.append(side, 0 * theirs), np.append(unit, theirs))[len(side) :]
        reasons = np.array([f"also_in_{SPLITS[s]}" if s else "" for s in kin], dtype=object)
        if by == "given":
            reasons[_told(unlabelled, settings) > 0] = "label_missing"
        if by == "time":
            newest = rows.filter(pl.col("split") == "train")["time"].max()
            reasons[(unlabelled["time"] > newest).fill_null(True).to_numpy()] = "after_train"
        teaching = unlabelled.filter(reasons == "").with_columns(split=pl.lit("train"))
        asides.append(_aside(unlabelled.filter(reasons != ""), reasons[reasons != ""]))
        rows = pl.concat([rows, teaching])
        notes.append(f"{teaching.height:,} texts of train have no label")
    for name in SPLITS:
        if not (rows["split"] == name).any():
            raise UserError(
                f"nothing is left for {name}: of {labelled.rows.height:,} rows "
                f"{rows.height:,} could be used, in {len(np.unique(unit)):,} groups",
                where="split",
                mend="give more rows, other shares, or groups that are smaller",
            )
    aside = pl.concat(
        [frame for frame in asides if frame.height] or [pl.DataFrame(schema=QUARANTINE)]
    )
    return Divided(rows, aside, by, tuple(notes))


def components(rows: pl.DataFrame, task: str) -> Int64:
    """Which rows belong together: int64[n], dense numbers."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    n = rows.height
    if task == "relevance":
        return _codes(plain(rows["query"]))
    text, group = _codes(plain(rows["text"])), _codes(rows["group"])
    if (group < 0).all():
        return text
    # rows, texts and groups are nodes; a row is tied to its text and to its group, if it has one
    row = np.arange(n)
    grouped = group >= 0
    texts = int(text.max()) + 1
    ends = np.concatenate([n + text, n + texts + group[grouped]])
    starts = np.concatenate([row, row[grouped]])
    size = n + texts + int(group.max()) + 1
    graph = coo_matrix((np.ones(len(starts), np.int8), (starts, ends)), shape=(size, size))
    _, found = connected_components(graph, directed=False)
    return np.unique(found[:n], return_inverse=True)[1].astype(np.int64)


def distinct(rows: pl.DataFrame, task: str) -> pl.DataFrame:
    """Rows without those that say again what an earlier one says: text, label, grade and all."""
    told = ["query", "text", "label", "rating", "grade", "split"]
    if task == "entities":
        told = ["text", "spans", "split"]
    return rows.unique(told, keep="first", maintain_order=True)


def sampled(rows: pl.DataFrame, most: int | None, seed: int) -> pl.DataFrame:
    """So many rows, drawn by a hash of what they say, in their order."""
    if most is None or rows.height <= most:
        return rows
    keys = rows["query"].fill_null("") + "\n" + rows["text"] + "\n" + rows["text_id"]
    draw = np.array([_draw(key, seed) for key in keys])
    return rows[np.sort(np.argsort(draw, kind="stable")[:most])]


def _usual(rows: pl.DataFrame, task: str) -> str:
    if rows["split"].is_not_null().any():
        return "given"
    return "stratified" if task in ("classify", "sentiment") else "random"


def _given(rows: pl.DataFrame, unit: Int64, settings: SplitSettings, task: str) -> Int64:
    """What the sources say; what they do not give is drawn from train."""
    side = _told(rows, settings)
    shares = {2: settings.test, 1: settings.validation}
    wanted = tuple(0.0 if (side == place).any() else shares[place] for place in (2, 1))
    train = side == 0
    if any(wanted) and train.any():
        free = train & (_highest(side, unit) == 0)
        labels = _codes(rows["label"]) if task in ("classify", "sentiment") else None
        strata = np.zeros(rows.height, np.int64) if labels is None else labels
        part = rows.filter(free)
        side[free] = _drawn(part, unit[free], strata[free], wanted, settings.seed, task)
    return side


def _told(rows: pl.DataFrame, settings: SplitSettings) -> Int64:
    """What the sources say, as places in `SPLITS`; train where they say nothing."""
    names = {**{name: name for name in SPLITS}, **_ALSO, **settings.names}
    told = rows["split"].fill_null("train")
    unknown = sorted({str(word) for word in told.unique()} - names.keys())
    if unknown:
        raise UserError(
            f"unknown splits: {', '.join(map(repr, unknown[:_SHOWN]))}",
            where="split.names",
            mend="say what each means: names: {WORD: train, …}",
        )
    return np.array([SPLITS.index(names[word]) for word in told], dtype=np.int64)


def _highest(side: Int64, unit: Int64) -> Int64:
    """For every row the latest split that its kin are in: what the test holds stays there."""
    highest = np.zeros(int(unit.max(initial=0)) + 1, dtype=np.int64)
    np.maximum.at(highest, unit, side)
    return highest[unit]


def _drawn(
    rows: pl.DataFrame,
    unit: Int64,
    strata: Int64,
    shares: Sequence[float],
    seed: int,
    task: str,
) -> Int64:
    """Systematic sampling (Madow 1949) of whole units in each stratum, in the order of a hash.

    Every stratum keeps a unit in train. `shares`: of test and of validation.
    """
    test, validation = shares
    unit = np.unique(unit, return_inverse=True)[1]
    sizes = np.bincount(unit)
    keys = plain(rows["query" if task == "relevance" else "text"]).to_list()
    draw = np.ones(len(sizes))
    np.minimum.at(draw, unit, np.array([_draw(key, seed) for key in keys]))
    stratum = _most_frequent(unit, strata)
    side = np.zeros(len(sizes), dtype=np.int64)
    for label in np.unique(stratum):
        members = np.flatnonzero(stratum == label)
        members = members[np.argsort(draw[members], kind="stable")]
        ends = np.cumsum(sizes[members])
        # a start of its own for each stratum, or rare labels would all miss the same split
        start = np.random.default_rng([seed, int(draw[members[0]] * 2**32)]).random()
        place = ((ends - sizes[members] / 2) / ends[-1] + start) % 1.0
        chosen = np.where(place < test, 2, np.where(place < test + validation, 1, 0))
        if not (chosen == 0).any():
            chosen[int(np.argmax(sizes[members]))] = 0
        side[members] = chosen
    return side[unit]


def _most_frequent(unit: Int64, strata: Int64) -> Int64:
    """The stratum that most rows of each unit are of."""
    pairs = pl.DataFrame({"unit": unit, "stratum": strata}).group_by("unit", "stratum").len()
    pairs = pairs.sort("unit", pl.col("len"), "stratum", descending=[False, True, False])
    first = pairs.group_by("unit", maintain_order=True).first().sort("unit")
    return first["stratum"].to_numpy().astype(np.int64)


def _by_time(rows: pl.DataFrame, unit: Int64, settings: SplitSettings) -> Int64:
    """The newest units are the test, those before them the validation."""
    if rows["time"].null_count():
        raise UserError(
            "a split by time needs to know which column is the time",
            where="sources",
            mend="add `time: COLUMN`, or choose another `split.by`",
        )
    moment = rows["time"].to_numpy()
    newest = np.full(int(unit.max()) + 1, np.iinfo(np.int64).min)
    np.maximum.at(newest, unit, moment)
    sizes = np.bincount(unit)
    order = np.argsort(newest, kind="stable")
    ends = np.cumsum(sizes[order]) / rows.height
    side = np.zeros(len(sizes), dtype=np.int64)
    side[order] = np.where(
        ends > 1 - settings.test, 2, np.where(ends > 1 - settings.test - settings.validation, 1, 0)
    )
    return side[unit]


def _without_unseen(rows: pl.DataFrame, notes: list[str]) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Nothing can learn a label that only validation or test has: its rows go aside."""
    known = set(rows.filter(pl.col("split") == "train")["label"].unique())
    unseen = ~pl.col("label").is_in(list(known))
    lost = rows.filter(unseen)
    if lost.height:
        names = lost["label"].unique().sort().to_list()
        notes.append(
            f"{lost.height:,} rows of validation and test have labels that train lacks, and were "
            f"put aside: {_some(names)}"
        )
    return rows.filter(~unseen), _aside(lost, np.full(lost.height, "label_not_in_train", object))


def _on_labels(rows: pl.DataFrame) -> list[str]:
    """What a person should know of the labels in train."""
    train = rows.filter(pl.col("split") == "train")
    counts = train.group_by("label").len().sort("label")
    if counts.height < 2:
        raise UserError(
            f"train has {counts.height} label: there is nothing to tell apart",
            where="sources",
            mend="check `label`; give rows of at least two labels",
        )
    lonely = counts.filter(pl.col("len") == 1)["label"].to_list()
    if not lonely:
        return []
    return [f"{len(lonely):,} labels have one example, which is in train: {_some(lonely)}"]


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _aside(rows: pl.DataFrame, reasons: npt.NDArray[np.object_]) -> pl.DataFrame:
    return rows.select(
        pl.Series("reason", list(reasons), dtype=pl.String),
        "source",
        "row",
        pl.col("text").str.slice(0, 300).alias("raw"),
    )


def plain(texts: pl.Series) -> pl.Series:
    """Texts without what hardly makes a difference: case and blanks."""
    return texts.str.to_lowercase().str.replace_all(r"\s+", " ").str.strip_chars()


def _codes(values: pl.Series) -> Int64:
    """Equal values as equal numbers: int64[n], −1 for null."""
    ranks = values.rank("dense").cast(pl.Int64) - 1
    return ranks.fill_null(-1).to_numpy().astype(np.int64)


def _draw(key: str, seed: int) -> float:
    """A number in [0, 1) that depends on the key and the seed alone."""
    digest = hashlib.blake2b(key.encode(), digest_size=8, salt=seed.to_bytes(8, "big")).digest()
    return int.from_bytes(digest, "big") / 2**64
