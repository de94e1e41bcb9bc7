"""Judgements out of behaviour: what users clicked after a query, as weak labels of relevance.

A click says more of an item at position 10 than at position 1, where everybody looks. Under the
position-based model an item's relevance to a query is its gains over its *examinations*, the
propensities of the positions it was shown at (Joachims et al. 2017; Chuklin et al. 2015, 3.8). Few
examinations say little, so the rate is drawn towards the log's mean as a Gamma prior would, and
the pair weighs as much as the log knows of it.
"""

from __future__ import annotations

import hashlib
from typing import Final

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
from pydantic import Field

from raysys import schema
from raysys.catalogue import Catalogue
from raysys.config import Settings
from raysys.errors import UserError
from raysys.features.position_bias import (
    PositionBiasSettings,
    Propensities,
    estimate_propensities,
)
from raysys.text.pairs import clean

_WHERE: Final = "text: behaviour"


class BehaviourSettings(Settings):
    """How behaviour becomes pairs.

    Attributes:
        gains: what the strongest reaction to an impression is worth, by event type.
        debias: estimate from the log how likely each position is looked at; else all alike.
        position_bias: of that estimate.
        prior: examinations that the mean rate counts for.
        least: examinations below which a pair is left out.
        negatives: further items of the catalogue for each query, drawn at random, of grade 0.
        negative_weight: of such a pair; one that was shown often weighs nearly 1.
        validation: share of the queries.
        test: share of the queries.
        seed: of the draws and of the splits.
    """

    gains: dict[str, float] = {"click": 1.0, "favorite": 1.5, "cart": 2.0, "purchase": 3.0}
    debias: bool = True
    position_bias: PositionBiasSettings = PositionBiasSettings(resamples=0)
    prior: float = Field(5.0, gt=0)
    least: float = Field(0.0, ge=0)
    negatives: int = Field(4, ge=0)
    negative_weight: float = Field(0.5, gt=0, le=1)
    validation: float = Field(0.1, ge=0, lt=0.5)
    test: float = Field(0.1, ge=0, lt=0.5)
    seed: int = 0


def pairs_from_behaviour(
    events: pa.Table,
    catalogue: Catalogue,
    settings: BehaviourSettings | None = None,
    *,
    propensities: Propensities | None = None,
) -> pa.Table:
    """Pairs of queries and items in `schema.LABELLED_PAIRS`, sorted by query and item.

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
    rows = _rows(events, catalogue, settings)
    if rows.is_empty():
        raise UserError(
            "no event has a query and a known item",
            where=_WHERE,
            mend="log the query with impressions and clicks",
        )
    shown = rows.filter("shown")
    if shown.is_empty():
        examined = rows.with_columns(examined=pl.lit(1.0))
    else:
        examined = shown.with_columns(
            examined=pl.Series(_examined(shown, settings, propensities), dtype=pl.Float64)
        )
    by_pair = (
        examined.group_by("query", "item")
        .agg(pl.col("gain").sum(), pl.col("examined").sum())
        .filter(pl.col("examined") > settings.least)
        .sort("query", "item")
    )
    e = by_pair["examined"].to_numpy()
    gained = by_pair["gain"].to_numpy()
    mean = float(gained.sum() / max(e.sum(), 1e-12)) if len(shown) else 0.0
    most = max(settings.gains.values())
    grade = (gained + settings.prior * mean) / (e + settings.prior)
    found = by_pair.select("query", "item").with_columns(
        grade=pl.Series(grade.clip(0.0, most), dtype=pl.Float32),
        weight=pl.Series(e / (e + settings.prior), dtype=pl.Float32),
    )
    found = pl.concat([found, _negatives(found, len(catalogue), settings)]).sort("query", "item")
    texts = np.array(catalogue.texts, dtype=object)
    item = found["item"].to_numpy()
    columns = {
        "query": found["query"].to_list(),
        "item_id": catalogue.ids[item].tolist(),
        "text": texts[item].tolist(),
        "grade": found["grade"].to_numpy(),
        "weight": found["weight"].to_numpy(),
        "split": _splits(found["query"].to_list(), settings),
    }
    return pa.table(columns, schema=schema.LABELLED_PAIRS)


def _rows(events: pa.Table, catalogue: Catalogue, settings: BehaviourSettings) -> pl.DataFrame:
    """One row for each impression, or for each reaction that answers to none: query, item,
    position, gain of the strongest reaction, shown."""
    names = ["event_type", "item_id", "request_id", "position", "query"]
    frame = pl.DataFrame(events.select(names)).with_columns(
        item=pl.Series(catalogue.numbers(events["item_id"]), dtype=pl.Int32),
        inferred=pl.Series(_flags(events), dtype=pl.Boolean),
    )
    frame = frame.filter(pl.col("item") >= 0)
    typed = {text: clean(text).lower() or None for text in frame["query"].unique().drop_nulls()}
    frame = frame.with_columns(
        pl.col("query").replace_strict(typed, default=None, return_dtype=pl.String)
    )
    reacted = frame.filter(pl.col("event_type").is_in(list(settings.gains))).with_columns(
        gain=pl.col("event_type").replace_strict(settings.gains, return_dtype=pl.Float64)
    )
    impressions = frame.filter(
        pl.col("event_type") == "impression",
        ~pl.col("inferred"),
        pl.col("query").is_not_null(),
        pl.col("request_id").is_not_null(),
    )
    if impressions.is_empty():
        alone = reacted.filter(pl.col("query").is_not_null())
        rows = alone.select("query", "item", pl.lit(None, pl.Int32).alias("position"), "gain")
        return rows.with_columns(shown=pl.lit(False))
    # what was shown twice in one answer was reacted to once, where it first stood; of a reaction
    # the request alone is read, since many logs keep the query with the impression only
    key = ["request_id", "item"]
    shown = impressions.sort("position", nulls_last=True, maintain_order=True)
    shown = shown.unique(key, keep="first", maintain_order=True)
    strongest = reacted.group_by(key).agg(pl.col("gain").max())
    rows = shown.join(strongest, on=key, how="left", maintain_order="left")
    return rows.select("query", "item", "position", pl.col("gain").fill_null(0.0)).with_columns(
        shown=pl.lit(True)
    )


def _flags(events: pa.Table) -> list[bool]:
    """Whether each event was inferred."""
    if "inferred" not in events.column_names:
        return [False] * events.num_rows
    return [bool(each) for each in events["inferred"].to_pylist()]


def _examined(
    shown: pl.DataFrame, settings: BehaviourSettings, propensities: Propensities | None
) -> npt.NDArray[np.float64]:
    """How likely each impression was looked at: float64[n]; 1 where no position is known."""
    position = shown["position"].fill_null(0).to_numpy()
    if propensities is None:
        if not settings.debias or not (position > 0).any():
            return np.ones(len(shown))
        try:
            propensities = estimate_propensities(
                shown["query"].to_numpy(),
                shown["item"].to_numpy(),
                position,
                (shown["gain"] > 0).to_numpy(),
                settings.position_bias,
            )
        except UserError as error:
            raise UserError(
                f"position bias cannot be estimated: {error.what}",
                where=_WHERE,
                mend="set debias: false to take all positions alike",
            ) from None
    return np.where(position > 0, propensities.of(np.maximum(position, 1)), 1.0)


def _negatives(found: pl.DataFrame, n_items: int, settings: BehaviourSettings) -> pl.DataFrame:
    """Items drawn for each query among those that the log does not pair with it."""
    rng = np.random.default_rng(settings.seed)
    queries, items = [], []
    if settings.negatives:
        for query, known in found.group_by("query", maintain_order=True).agg("item").iter_rows():
            drawn = np.unique(rng.integers(0, n_items, 2 * settings.negatives + len(known)))
            drawn = rng.permutation(np.setdiff1d(drawn, known))[: settings.negatives]
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


def _splits(queries: list[str], settings: BehaviourSettings) -> list[str]:
    """The split of each query by a hash of it, so that a longer log changes none."""
    of = {}
    for query in set(queries):
        digest = hashlib.blake2b(f"{settings.seed}:{query}".encode(), digest_size=8).digest()
        place = int.from_bytes(digest, "big") / 2**64
        test = place < settings.test
        held = place < settings.test + settings.validation
        of[query] = "test" if test else "validation" if held else "train"
    return [of[query] for query in queries]
