"""Rules asked of draft rows: what is clean, what goes to the quarantine, and how many of each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import Final

import numpy as np
import numpy.typing as npt
import polars as pl

from raysys.datasets.mapping import MENDED, UNPARSED
from raysys.ingest.catalogue_rules import HELPERS
from raysys.ingest.rules import QUARANTINE_SCHEMA, ROW, SOURCE, Rule
from raysys.ingest.tally import EXAMPLES, Tally
from raysys.ingest.words import WHOLE_FILES

Int64 = npt.NDArray[np.int64]

_REASON: Final = "_reason"


def apply(
    rules: Sequence[Rule], draft: pl.DataFrame, raw: pl.DataFrame, table: str
) -> tuple[pl.DataFrame, pl.DataFrame, Tally]:
    """Ask every rule of every draft row.

    Args:
        rules: quarantining ones in order; the others are asked of the rows that pass, first the
            keeping ones, then the mending ones in order.
        draft: rows with `SOURCE` and `ROW`.
        raw: the same rows as their file has them, for the quarantine.
        table: which table the rows belong to.

    Returns:
        The clean rows, the quarantine (`QUARANTINE_SCHEMA`), and the tally; the two tables
        together have exactly the draft's rows.
    """
    (found,) = apply_each(rules, [(draft, raw)], table)
    return found


def apply_each(
    rules: Sequence[Rule], drafts: Sequence[tuple[pl.DataFrame, pl.DataFrame]], table: str
) -> list[tuple[pl.DataFrame, pl.DataFrame, Tally]]:
    """`apply` for several drafts, each with its raw rows: asked once of all of them.

    A call costs as much as the rows of a small file do. The raw rows must have the same columns.
    """
    ends = np.cumsum([draft.height for draft, _ in drafts])
    tallies = [Tally(rows_in=draft.height, rows_out=draft.height) for draft, _ in drafts]
    hit, draft = _that_apply(rules, _together([draft for draft, _ in drafts]))
    refused = [(rule, asked) for rule, asked in hit if rule.action == "quarantine"]
    clean, rejected = draft, [pl.DataFrame(schema=QUARANTINE_SCHEMA)] * len(drafts)
    if refused:
        reason = pl.coalesce(
            *(pl.when(asked).then(pl.lit(rule.name)) for rule, asked in refused),
            pl.lit(None, dtype=pl.String),
        )
        judged = draft.select(reason.alias(_REASON)).to_series()
        bad = judged.is_not_null()
        raw = pl.concat([raw for _, raw in drafts]) if len(drafts) > 1 else drafts[0][1]
        gone = quarantine(draft.filter(bad), raw.filter(bad), judged.filter(bad), table)
        before = _before(bad, ends)
        rejected = _parts(gone, before)
        clean, ends = draft.filter(~bad), ends - before
        for tally, part in zip(tallies, rejected, strict=True):
            note(tally, part)
            tally.rows_out -= part.height
    for rule, asked in hit:
        if rule.action == "keep":
            here = clean.select(asked.alias("hit")).to_series()
            for tally, rows in zip(tallies, _those(clean, here, ends), strict=True):
                _count(tally, tally.kept, rule.name, rows)
    clean = _mend(hit, clean, ends, tallies).drop(HELPERS, strict=False)
    return list(zip(_parts(clean, ends), rejected, tallies, strict=True))


def _together(drafts: Sequence[pl.DataFrame]) -> pl.DataFrame:
    """Drafts one after the other; columns in which nobody says anything take no room."""
    if len(drafts) == 1:
        return drafts[0]
    kinds = drafts[0].schema
    told = [name for name in kinds if any(d[name].null_count() < d.height for d in drafts)]
    joined = pl.concat([draft.select(told) for draft in drafts], rechunk=True)
    rest = (pl.lit(None, dtype=kind).alias(name) for name, kind in kinds.items())
    return joined.with_columns(one for one in rest if one.meta.output_name() not in told).select(
        kinds.names()
    )


def _before(hit: pl.Series, ends: Int64) -> Int64:
    """How many rows that are hit lie before each end: int64[d]."""
    return np.searchsorted(hit.arg_true().to_numpy(), ends).astype(np.int64)


def _parts(rows: pl.DataFrame, ends: Int64) -> list[pl.DataFrame]:
    """The rows before the first end, from there to the second, …"""
    starts = [0, *ends.tolist()]
    return [rows.slice(start, end - start) for start, end in pairwise(starts)]


def _those(rows: pl.DataFrame, hit: pl.Series, ends: Int64) -> list[pl.DataFrame]:
    """The rows that are hit, in such parts."""
    return _parts(rows.filter(hit), _before(hit, ends))


def _that_apply(
    rules: Sequence[Rule], draft: pl.DataFrame
) -> tuple[list[tuple[Rule, pl.Expr]], pl.DataFrame]:
    """The rules that apply to any row, as expressions over the frame that is returned too."""
    if draft.height == 0:
        return [], draft
    catalogue = next((rule.catalogue for rule in rules if rule.catalogue), None)
    if catalogue:
        draft = catalogue.describe(draft)
    filled = frozenset(name for name in draft.columns if draft[name].null_count() < draft.height)
    asked = [(rule, question) for rule in rules if (question := rule.question(filled)) is not None]
    any_row = draft.select(
        question.any().alias(str(number)) for number, (_, question) in enumerate(asked)
    )
    found = [one for one, hits in zip(asked, any_row.row(0), strict=True) if hits]
    return [(rule, question.fill_null(False)) for rule, question in found], draft


def quarantine(
    rows: pl.DataFrame, raw: pl.DataFrame, reasons: pl.Series, table: str
) -> pl.DataFrame:
    """Rows for the quarantine, in `QUARANTINE_SCHEMA`; `raw` becomes JSON."""
    if rows.height == 0:
        return pl.DataFrame(schema=QUARANTINE_SCHEMA)
    return pl.DataFrame(
        {
            "table": pl.Series([table]).new_from_index(0, rows.height),
            "reason": reasons,
            "source": rows[SOURCE],
            "row": rows[ROW],
            "raw": raw.select(pl.struct(pl.all()).struct.json_encode()).to_series(),
        },
        schema=QUARANTINE_SCHEMA,
    )


def note(tally: Tally, rejected: pl.DataFrame) -> None:
    """Count what goes to the quarantine, and keep examples."""
    places: dict[str, list[int]] = {}
    for place, rule in enumerate(rejected["reason"].to_list()):
        places.setdefault(rule, []).append(place)
    for rule, found in sorted(places.items()):
        tally.reasons[rule] += len(found)
        for one in rejected[found[:EXAMPLES]].iter_rows(named=True):
            tally.example(rule, one["source"], one["row"], one["raw"])
        if rule in WHOLE_FILES:
            tally.files |= dict.fromkeys(rejected["source"].gather(found), rule)


def _mend(
    hit: Sequence[tuple[Rule, pl.Expr]],
    clean: pl.DataFrame,
    ends: Int64,
    tallies: Sequence[Tally],
) -> pl.DataFrame:
    """Apply the mending rules, and count what adapters have mended already."""
    if MENDED in clean.columns and clean[MENDED].null_count() < clean.height:
        for name in clean[MENDED].drop_nulls().unique().sort():
            here = (clean[MENDED] == name).fill_null(False)
            for tally, rows in zip(tallies, _those(clean, here, ends), strict=True):
                _count(tally, tally.mended, name, rows)
    for rule, asked in hit:
        if rule.action != "mend":
            continue
        here = clean.select(asked.alias("hit")).to_series()
        if not here.any():
            continue
        for tally, rows in zip(tallies, _those(clean, here, ends), strict=True):
            _count(tally, tally.mended, rule.name, rows)
        clean = clean.with_columns(
            pl.when(here).then(to).otherwise(pl.col(column)).alias(column)
            for column, to in rule.mend.items()
            if column in clean.columns
        )
    return clean


def _count(tally: Tally, counts: Counter[str], rule: str, rows: pl.DataFrame) -> None:
    """Count rows that stay, and show some of them as they are before they are mended."""
    if rows.height == 0:
        return
    counts[rule] += rows.height
    shown = rows.head(EXAMPLES)
    texts = shown.select(
        pl.struct(pl.exclude(SOURCE, ROW, UNPARSED, MENDED, *HELPERS)).struct.json_encode()
    ).to_series()
    for source, row, text in zip(shown[SOURCE], shown[ROW], texts, strict=True):
        tally.example(rule, source, row, text)
