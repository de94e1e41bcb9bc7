"""Judgements out of behaviour: what users clicked after a query, as weak labels of relevance.

A click says more of an item at position 10 than at position 1, where everybody looks. Under the
position-based model an item's relevance to a query is its gains over its *examinations*, the
propensities of the positions it was shown at (Joachims et al. 2017; Chuklin et al. 2015, 3.8). Few
examinations say little, so the rate is drawn towards the log's mean as a Gamma prior would, and
the pair weighs as much as the log knows of it.

Divided by time (`pairs_by_time`) a query is on one side, and each side reads its own part of the
log: train the first, test the last. So what is judged is how a model that knows the past of some
queries orders the items of others later.
"""

from __future__ import annotations

import datetime as dt
import hashlib
from collections import Counter
from collections.abc import Mapping
from typing import Final

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
from pydantic import Field, field_validator

from raysys import schema
from raysys.catalogue import Catalogue
from raysys.config import Settings
from raysys.datasets.splits import SPLITS, SplitSettings
from raysys.errors import UserError
from raysys.features.position_bias import (
    PositionBiasSettings,
    Propensities,
    estimate_propensities,
)
from raysys.text.items import item_texts
from raysys.text.pairs import clean

STEPS: Final = 50
"""Grades between 0 and the highest that behaviour is told apart by."""

_WHERE: Final = "text: behaviour"


class BehaviourSettings(Settings):
    """How behaviour becomes pairs.

    Attributes:
        gains: what the strongest reaction to an impression is worth, by event type.
        debias: estimate from the log how likely each position is looked at; else all alike.
        position_bias: of that estimate.
        prior: examinations that the mean rate counts for.
        least: examinations below which a pair is left out.
        top: share of train's pairs whose grade lies below the highest; what is above it counts as
            the highest, so that a few odd pairs do not make all others look alike.
        negatives: further items of the catalogue for each query, drawn at random, of grade 0.
        negative_weight: of such a pair; one that was shown often weighs nearly 1.
        text: columns of items that are read, in this order; empty: nearly all.
        seed: of the draws.
    """

    gains: dict[str, float] = {"click": 1.0, "favorite": 1.5, "cart": 2.0, "purchase": 3.0}
    debias: bool = True
    position_bias: PositionBiasSettings = PositionBiasSettings(resamples=0)
    prior: float = Field(5.0, gt=0)
    least: float = Field(0.0, ge=0)
    top: float = Field(0.95, gt=0, le=1)
    negatives: int = Field(4, ge=0)
    negative_weight: float = Field(0.5, gt=0, le=1)
    text: tuple[str, ...] = ()
    seed: int = Field(0, ge=0)

    @field_validator("text", mode="before")
    @classmethod
    def _a_list(cls, names: object) -> object:
        return (names,) if isinstance(names, str) else names

    @field_validator("gains")
    @classmethod
    def _of_events(cls, gains: dict[str, float]) -> dict[str, float]:
        reactions = schema.EVENT_TYPES[1:6]
        for name, worth in gains.items():
            if name not in reactions:
                raise ValueError(f"{name!r} is no reaction; choose among {', '.join(reactions)}")
            if not 0 <= worth < float("inf"):
                raise ValueError(f"{name}: a gain is a number from 0 on")
        if not any(gains.values()):
            raise ValueError("give a reaction that is worth something")
        return gains


def pairs_from_behaviour(
    events: pa.Table,
    catalogue: Catalogue,
    settings: BehaviourSettings | None = None,
    *,
    propensities: Propensities | None = None,
) -> pa.Table:
    """Pairs of queries and items in `schema.LABELLED_PAIRS`, sorted by query and item, all train.

    The grade is the expected gain of an examination, shrunk towards the log's mean; the weight
    is the share of it that the log says: e / (e + prior) for e examinations. A log without
    impressions (clicks after queries, nothing of what was shown) takes every reaction for an
    examination: what was clicked gets a high grade, and only drawn negatives have 0.

    Args:
        events: `schema.EVENTS` of the training period. Impressions count that have a query and a
            request and are not inferred (nobody knows those to have been shown), with the
            reactions of the same request to the same item.
        catalogue: for the texts; items that it lacks do not count.
        settings: None: the defaults.
        propensities: of the positions, estimated elsewhere; None: see `settings.debias`.

    Raises:
        UserError: no event with query and item; nothing that debiasing could be learned from.
    """
    settings = settings or BehaviourSettings()
    rows = _rows(_read(events, catalogue), settings)
    if rows.is_empty():
        raise _nothing()
    if propensities is None:
        propensities = _propensities(rows, settings)
    found = _graded(rows, settings, propensities)
    drawn = _negatives(found, rows, len(catalogue), settings)
    return _table({"train": pl.concat([found, drawn])}, catalogue, settings)


def pairs_by_time(
    events: pa.Table,
    catalogue: Catalogue,
    settings: BehaviourSettings,
    split: SplitSettings,
) -> pa.Table:
    """As `pairs_from_behaviour`, in train, validation and test.

    The log is cut in time so that test and validation have the last shares of its events that
    count. Of each part only those queries are read that a hash gave to its split, in the same
    shares. Impressions answer for what followed within their part; propensities, and the highest
    grade, are those of train.

    Args:
        events: see `pairs_from_behaviour`; `timestamp` is read as well.
        catalogue: for the texts.
        settings: how behaviour becomes pairs.
        split: its shares and its seed.

    Raises:
        UserError: see `pairs_from_behaviour`; a split that stays empty.
    """
    read = _read(events, catalogue)
    by_impressions = not _impressions(read).is_empty()
    cuts = _cuts(_rows(read, settings, by_impressions), split)
    side = _sides(read["query"].drop_nulls().unique().to_list(), split)
    begins, ends = [None, *cuts], [*cuts, None]
    propensities: Propensities | None = None
    parts: dict[str, pl.DataFrame] = {}
    for name, begin, end in zip(SPLITS, begins, ends, strict=True):
        past = read if end is None else read.filter(pl.col("timestamp") < end)
        part = past if begin is None else past.filter(pl.col("timestamp") >= begin)
        mine = pl.col("query").replace_strict(side, default=None, return_dtype=pl.String) == name
        rows = _rows(part, settings, by_impressions).filter(mine)
        if rows.is_empty():
            raise UserError(
                f"nothing is left for {name}: none of its queries was asked in its part of the log",
                where="split",
                mend=f"give a longer log, or another share of {name} under `split`",
            )
        if name == "train":
            propensities = _propensities(rows, settings)
        found = _graded(rows, settings, propensities)
        known = _rows(past, settings, by_impressions).filter(mine)
        parts[name] = pl.concat([found, _negatives(found, known, len(catalogue), settings)])
    highest = highest_grade(parts["train"]["grade"].to_numpy(), settings.top)
    for name, frame in parts.items():
        steps = (frame["grade"] / highest).clip(0, 1) * STEPS
        grade = (steps.round() * (highest / STEPS)).cast(pl.Float32)
        parts[name] = frame.with_columns(grade=grade)
    return _table(parts, catalogue, settings)


def validation_begins(
    events: pa.Table, catalogue: Catalogue, settings: BehaviourSettings, split: SplitSettings
) -> dt.datetime:
    """The moment, UTC, from which `pairs_by_time` judges, of the same arguments.

    Raises:
        UserError: no event has a query and a known item.
    """
    return _cuts(_rows(_read(events, catalogue), settings), split)[0]


def _cuts(rows: pl.DataFrame, split: SplitSettings) -> list[dt.datetime]:
    """Where validation and test begin."""
    moments = rows["timestamp"].sort()
    if moments.is_empty():
        raise _nothing()
    tail = np.array([split.test + split.validation, split.test])
    return [moments[int(at)] for at in ((1 - tail) * len(moments)).clip(0, len(moments) - 1)]


def highest_grade(grade: npt.NDArray[np.float32], top: float) -> float:
    """The grade below which a share `top` of those lies that are above 0; 1 where none is."""
    positive = grade[grade > 0]
    return float(np.quantile(positive, top)) if len(positive) else 1.0


def _nothing() -> UserError:
    return UserError(
        "no event has a query and a known item",
        where=_WHERE,
        mend="log the query with impressions and clicks",
    )


def _read(events: pa.Table, catalogue: Catalogue) -> pl.DataFrame:
    """Events of known items, with the item's number; queries cleaned, each in one spelling.

    Of spellings that differ by their case alone it is the most frequent, as it will be typed when
    the model is asked: a cased tokenizer reads another as other words.
    """
    names = ["event_type", "item_id", "request_id", "position", "query", "timestamp"]
    frame = pl.DataFrame(events.select(names)).with_columns(
        item=pl.Series(catalogue.numbers(events["item_id"]), dtype=pl.Int32),
        inferred=_flags(events),
    )
    frame = frame.filter(pl.col("item") >= 0).drop("item_id")
    typed = _spellings(frame["query"].drop_nulls().value_counts(name="n"))
    return frame.with_columns(
        pl.col("query").replace_strict(typed, default=None, return_dtype=pl.String)
    )


def _spellings(counted: pl.DataFrame) -> dict[str, str | None]:
    """Each query that was typed, to what stands for it; None: it says nothing.

    Args:
        counted: `query` and how often, `n`.
    """
    often: dict[str, Counter[str]] = {}
    for text, n in counted.iter_rows():
        line = clean(text)
        often.setdefault(line.lower(), Counter())[line] += n
    best = {key: min(lines, key=lambda line: (-lines[line], line)) for key, lines in often.items()}
    return {text: best[clean(text).lower()] or None for text in counted["query"]}


def _impressions(read: pl.DataFrame) -> pl.DataFrame:
    """What is known to have been shown as the answer to a query."""
    return read.filter(
        pl.col("event_type") == "impression",
        ~pl.col("inferred"),
        pl.col("query").is_not_null(),
        pl.col("request_id").is_not_null(),
    )


def _rows(
    read: pl.DataFrame, settings: BehaviourSettings, by_impressions: bool | None = None
) -> pl.DataFrame:
    """One row for each impression, or for each reaction that answers to none: query, item,
    position, timestamp, gain of the strongest reaction, shown.

    Args:
        read: of `_read`.
        settings: what reactions are worth.
        by_impressions: whether impressions are what counts; None: if there are any.
    """
    reacted = read.filter(pl.col("event_type").is_in(list(settings.gains))).with_columns(
        gain=pl.col("event_type").replace_strict(settings.gains, return_dtype=pl.Float64)
    )
    impressions = _impressions(read)
    if by_impressions is None:
        by_impressions = not impressions.is_empty()
    if not by_impressions:
        alone = reacted.filter(pl.col("query").is_not_null())
        position = pl.lit(None, pl.Int32).alias("position")
        rows = alone.select("query", "item", position, "timestamp", "gain")
        return rows.with_columns(shown=pl.lit(False))
    # what was shown twice in one answer was reacted to once, where it first stood; of a reaction
    # the request alone is read, since many logs keep the query with the impression only
    key = ["request_id", "item"]
    shown = impressions.sort("position", nulls_last=True, maintain_order=True)
    shown = shown.unique(key, keep="first", maintain_order=True)
    strongest = reacted.group_by(key).agg(pl.col("gain").max())
    rows = shown.join(strongest, on=key, how="left", maintain_order="left")
    columns = ["query", "item", "position", "timestamp"]
    return rows.select(*columns, pl.col("gain").fill_null(0.0)).with_columns(shown=pl.lit(True))


def _flags(events: pa.Table) -> pl.Series:
    """Whether each event was inferred: bool[n]."""
    if "inferred" not in events.column_names:
        return pl.Series([False] * events.num_rows, dtype=pl.Boolean)
    return pl.Series(pl.from_arrow(events["inferred"])).cast(pl.Boolean).fill_null(False)


def _graded(
    rows: pl.DataFrame, settings: BehaviourSettings, propensities: Propensities | None
) -> pl.DataFrame:
    """Each pair once: query, item, grade float32, weight float32, sorted by query and item."""
    examined = rows.with_columns(examined=pl.Series(_examined(rows, propensities)))
    by_pair = (
        examined.group_by("query", "item")
        .agg(pl.col("gain").sum(), pl.col("examined").sum())
        .filter(pl.col("examined") > settings.least)
        .sort("query", "item")
    )
    e = by_pair["examined"].to_numpy()
    gained = by_pair["gain"].to_numpy()
    mean = float(gained.sum() / max(e.sum(), 1e-12)) if rows["shown"].any() else 0.0
    grade = (gained + settings.prior * mean) / (e + settings.prior)
    return by_pair.select("query", "item").with_columns(
        grade=pl.Series(grade.clip(0.0, max(settings.gains.values())), dtype=pl.Float32),
        weight=pl.Series(e / (e + settings.prior), dtype=pl.Float32),
    )


def _table(
    parts: Mapping[str, pl.DataFrame], catalogue: Catalogue, settings: BehaviourSettings
) -> pa.Table:
    """`schema.LABELLED_PAIRS`, sorted by query and item; by split what `_graded` gives."""
    texts = item_texts(catalogue, settings.text)
    frames = [frame.with_columns(split=pl.lit(name)) for name, frame in parts.items()]
    found = pl.concat(frames).sort("query", "item")
    item = found["item"].to_numpy()
    columns = {
        "query": found["query"].to_list(),
        "item_id": catalogue.ids[item].tolist(),
        "text": [texts.distinct[code] for code in texts.codes[item]],
        "grade": found["grade"].to_numpy(),
        "weight": found["weight"].to_numpy(),
        "split": found["split"].to_list(),
    }
    return pa.table(columns, schema=schema.LABELLED_PAIRS)


def _propensities(rows: pl.DataFrame, settings: BehaviourSettings) -> Propensities | None:
    """How likely each position is looked at; None: all alike.

    Raises:
        UserError: the log cannot tell.
    """
    placed = rows.filter(pl.col("position") > 0)
    if not settings.debias or placed.is_empty():
        return None
    try:
        return estimate_propensities(
            placed["query"].to_numpy(),
            placed["item"].to_numpy(),
            placed["position"].to_numpy(),
            (placed["gain"] > 0).to_numpy(),
            settings.position_bias,
        )
    except UserError as error:
        raise UserError(
            f"position bias cannot be estimated: {error.what}",
            where=_WHERE,
            mend="set debias: false to take all positions alike",
        ) from None


def _examined(rows: pl.DataFrame, propensities: Propensities | None) -> npt.NDArray[np.float64]:
    """How likely each row was looked at: float64[n]; 1 where no position is known."""
    if propensities is None:
        return np.ones(len(rows))
    position = rows["position"].fill_null(0).to_numpy()
    return np.where(position > 0, propensities.of(np.maximum(position, 1)), 1.0)


def _negatives(
    found: pl.DataFrame, known: pl.DataFrame, n_items: int, settings: BehaviourSettings
) -> pl.DataFrame:
    """Items drawn for each query of `found` among those that `known` does not pair with it."""
    rng = np.random.default_rng(settings.seed)
    queries, items = [], []
    if settings.negatives:
        asked = found.select("query").unique()
        pairs = known.select("query", "item").unique().join(asked, on="query", how="semi")
        pairs = pairs.sort("query", "item").group_by("query", maintain_order=True).agg("item")
        for query, held in pairs.iter_rows():
            drawn = np.unique(rng.integers(0, n_items, 2 * settings.negatives + len(held)))
            drawn = rng.permutation(np.setdiff1d(drawn, held))[: settings.negatives]
            queries += [query] * len(drawn)
            items += drawn.tolist()
    return pl.DataFrame(
        {
            "query": pl.Series(queries, dtype=pl.String),
            "item": pl.Series(items, dtype=pl.Int32),
            "grade": pl.Series([0.0] * len(items), dtype=pl.Float32),
            "weight": pl.Series([settings.negative_weight] * len(items), dtype=pl.Float32),
        }
    )


def _sides(queries: list[str], split: SplitSettings) -> dict[str, str]:
    """The split of each query by a hash of it, so that a longer log changes none.

    Of the query in lower case: how it is most often spelt may change.
    """
    of = {}
    for query in queries:
        digest = hashlib.blake2b(f"{split.seed}:{query.lower()}".encode(), digest_size=8).digest()
        place = int.from_bytes(digest, "big") / 2**64
        held = place < split.test + split.validation
        of[query] = "test" if place < split.test else "validation" if held else "train"
    return of
