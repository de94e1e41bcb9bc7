"""Texts with labels out of a shop's files: what a task learns from, and what was put aside and why.

A row that a task cannot learn from (no text, no label, a grade that is no number, a span outside
its text) never stops a run: it goes to the quarantine with its reason.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import polars as pl

from raysys.datasets import complete_journey, files
from raysys.datasets.files import Part
from raysys.datasets.labelled_files import LabelledFiles, TextSource
from raysys.datasets.labelled_spans import Locate, Reader, spans_of, tagged
from raysys.datasets.labelled_values import as_prose, as_text, labels, path_hint, rating, unsayable
from raysys.datasets.mapping import TableFiles
from raysys.datasets.times import to_millis
from raysys.errors import UserError

log = logging.getLogger("raysys")

QUARANTINE: Final[dict[str, Any]] = {
    "reason": pl.String,
    "source": pl.String,
    "row": pl.Int64,
    "raw": pl.String,
}
"""Columns of a quarantine: why, the file, the record's number, and what it said."""

SPANS: Final = pl.List(pl.Struct({"start": pl.Int32, "end": pl.Int32, "label": pl.String}))
DRAFT: Final[dict[str, Any]] = {
    "text_id": pl.String,
    "text": pl.String,
    "label": pl.String,
    "rating": pl.Float32,
    "spans": SPANS,
    "query": pl.String,
    "item_id": pl.String,
    "grade": pl.Float32,
    "weight": pl.Float32,
    "group": pl.String,
    "time": pl.Int64,
    "split": pl.String,
    "source": pl.String,
    "row": pl.Int64,
}
"""Columns of a draft: all that a source may say; null where it does not. `time`: UTC ms."""


_RAW: Final = 300  # characters of a row that the quarantine keeps
_BAD: Final = "_bad"


@dataclass
class Labelled:
    """What was read.

    Attributes:
        rows: `DRAFT`; every row has what its task needs, or else no label.
        aside: `QUARANTINE`.
        read: records in the files, aside among them.
        notes: what was mended → how often.
    """

    rows: pl.DataFrame
    aside: pl.DataFrame
    read: int = 0
    notes: dict[str, int] = field(default_factory=dict)

    @property
    def reasons(self) -> dict[str, int]:
        """Reason → rows aside, the most frequent first."""
        return dict(Counter(self.aside["reason"].to_list()).most_common())


def find(sources: Sequence[TextSource]) -> list[list[Part]]:
    """The files of every source.

    Raises:
        UserError: a path that names nothing, or a column that no file has.
    """
    return [files.find(source.table(), _derived(source)) for source in sources]


def find_items(sources: Sequence[TextSource]) -> list[list[Part]]:
    """The files in which every source has the texts of its items; none where it has them itself.

    Raises:
        UserError: see `find`.
    """
    items = [getattr(source, "items", None) for source in sources]
    return [[] if each is None else files.find(each.table()) for each in items]


def read(
    sources: Sequence[TextSource],
    found: Sequence[Sequence[Part]],
    task: str,
    locate: Locate | None = None,
    advance: Callable[[int], None] = lambda rows: None,
    *,
    unlabelled: bool = False,
) -> Labelled:
    """All rows that a task can learn from, in the order of the files.

    Args:
        sources: what the YAML says.
        found: their files, as `find` gave them.
        task: classify, entities, sentiment or relevance.
        locate: finds the values of attributes, where sources have these instead of spans.
        advance: told how many more records were read.
        unlabelled: keep texts of which no label is known: a learner puts them to use.

    Raises:
        UserError: columns that the task needs and no source names; nothing to learn from.
    """
    drafts: list[pl.DataFrame] = []
    aside: list[pl.DataFrame] = []
    total = 0
    notes: Counter[str] = Counter()
    reader = Reader(task, locate, notes, unlabelled)
    for number, (source, parts) in enumerate(zip(sources, found, strict=True)):
        _check(source, task, where=f"sources.{number}")
        texts = _item_texts(source)
        for part in parts:
            for rows, lost in blocks(source.table(), part, prepare=_prepare(source)):
                draft = _draft(source, rows, part, reader, texts)
                good = draft.filter(pl.col(_BAD).is_null())
                drafts.append(good.select(list(DRAFT)))
                aside += [_quarantine(draft.filter(pl.col(_BAD).is_not_null())), lost]
                total += draft.height + lost.height
                advance(draft.height + lost.height)
    rows = pl.concat(drafts) if drafts else pl.DataFrame(schema=DRAFT)
    labelled = Labelled(rows, pl.concat(aside or [_no_rows()]), total, dict(notes))
    if not rows.height:
        reasons = ", ".join(f"{name} {n:,}" for name, n in labelled.reasons.items())
        raise UserError(
            f"nothing to learn from: of {total:,} rows all were put aside ({reasons or 'none'})",
            where="sources",
            mend="check which column is the text and which the label",
        )
    if task in ("classify", "sentiment") and rows["label"].is_null().all():
        raise UserError(f"none of {rows.height:,} texts has a label", where="sources")
    sign = path_hint(rows["label"]) if task == "classify" else None
    if sign and not any(source.label_separator for source in sources):
        log.warning("most labels hold %r: if they are paths, say `label_separator: %r`", sign, sign)
    return labelled


def blocks(
    table: TableFiles, part: Part, prepare: Callable[[pl.DataFrame], pl.DataFrame] | None = None
) -> Iterable[tuple[pl.DataFrame, pl.DataFrame]]:
    """A file's records, some at a time: with the column `_row` (1-based), and what is unreadable.

    Args:
        table: which columns.
        part: the file.
        prepare: adds what its adapter derives.
    """
    derived = frozenset({"title"}) if prepare else frozenset()
    for block in files.read(part, table, derived):
        lost = [(fault.reason, part.label, fault.row, fault.raw[:_RAW]) for fault in block.faults]
        rows = block.rows
        if rows.height:
            rows = prepare(rows) if prepare else rows
            rows = rows.with_columns(block.numbers.alias("_row"))
        yield rows, pl.DataFrame(lost, schema=QUARANTINE, orient="row")


def joined(rows: pl.DataFrame, columns: Sequence[str], separator: str) -> pl.Expr:
    """The text of a row: one column as it is, or several without their outer blanks, joined.

    Several columns of which all are empty give null.
    """
    if len(columns) == 1:
        return as_prose(rows, columns[0], separator)
    texts = [as_prose(rows, name, separator).str.strip_chars() for name in columns]
    filled = [pl.when(text != "").then(text) for text in texts]
    text = pl.concat_str(filled, separator=separator, ignore_nulls=True)
    return pl.when(text != "").then(text)


def _derived(source: TextSource) -> frozenset[str]:
    return frozenset() if isinstance(source, LabelledFiles) else frozenset({"title"})


def _prepare(source: TextSource) -> Callable[[pl.DataFrame], pl.DataFrame] | None:
    return None if isinstance(source, LabelledFiles) else complete_journey.with_titles


def _check(source: TextSource, task: str, where: str) -> None:
    """Refuse a source that cannot say what the task needs."""
    if not source.text and not source.tokens and getattr(source, "items", None) is None:
        raise UserError("text: say which column is the text", where=where)
    lacks = {
        "classify": () if source.label else ("label",),
        "sentiment": () if source.label or source.rating else ("rating",),
        "entities": (
            ()
            if source.spans or source.tags or source.attributes or source.attribute_columns
            else ("spans",)
        ),
        "relevance": tuple(name for name in ("query", "grade") if not getattr(source, name)),
    }[task]
    if lacks:
        raise UserError(
            f"{task} needs to know which column is the {lacks[0]}",
            where=where,
            mend=f"add `{lacks[0]}: COLUMN`"
            + (" (or `tags`, `attributes`, or `attribute_columns`)" if lacks[0] == "spans" else ""),
        )


def _item_texts(source: TextSource) -> pl.DataFrame | None:
    """Ids and texts of the items that judgements name, where they are in files of their own."""
    if not isinstance(source, LabelledFiles) or source.items is None:
        return None
    items, found = source.items, []
    table = items.table()
    for part in files.find(table):
        for rows, _ in blocks(table, part):
            if rows.height:
                text = joined(rows, items.text, items.join)
                found.append(rows.select(item_id=as_text(rows, items.id), text=text))
    if not found:
        raise UserError("no items could be read", where="items", mend="check the files")
    return pl.concat(found).unique("item_id", keep="first", maintain_order=True)


def _draft(
    source: TextSource,
    rows: pl.DataFrame,
    part: Part,
    reader: Reader,
    items: pl.DataFrame | None,
) -> pl.DataFrame:
    """`DRAFT`, and `_bad`: why the row cannot be used, else null; `_raw`: what it said."""
    if not rows.height:
        return pl.DataFrame(schema={**DRAFT, _BAD: pl.String, "_raw": pl.String})

    def told(name: str | None) -> pl.Expr:
        return as_text(rows, name).str.strip_chars() if name else pl.lit(None, dtype=pl.String)

    def number(name: str | None) -> pl.Expr:
        value = told(name).cast(pl.Float32, strict=False)
        return pl.when(value.is_finite()).then(value)

    key = pl.lit(f"{part.key}-") + pl.col("_row").cast(pl.String)
    raw = pl.concat_str([told(name) for name in dict.fromkeys(source.roles().values())],
                        separator=" | ", ignore_nulls=True)  # fmt: skip
    frame = rows.select(
        text=joined(rows, source.text, source.join) if source.text else pl.lit(None, pl.String),
        label=labels(source, rows, reader.task, reader.notes),
        rating=rating(rows, source.rating),
        _unrated=unsayable(told(source.rating)),
        query=told(source.query),
        item_id=told(source.item),
        grade=number(source.grade),
        weight=number(source.weight) if source.weight else pl.lit(1.0, pl.Float32),
        group=told(source.group),
        split=told(source.split) if source.split else pl.lit(source.in_split, pl.String),
        _answer=told(source.answer).str.to_lowercase(),
        text_id=pl.coalesce(told(source.id), key) if source.id else key,
        source=pl.lit(part.label),
        row="_row",
        _raw=raw.str.slice(0, _RAW),
    )
    moments = to_millis(rows[source.time], source.time_format) if source.time else None
    frame = frame.with_columns(
        pl.Series("time", [None], dtype=pl.Int64).new_from_index(0, rows.height)
        if moments is None
        else moments.alias("time")
    )
    if items is not None:
        frame = frame.drop("text").join(items, on="item_id", how="left", maintain_order="left")
    if reader.task == "sentiment" and not source.label:
        frame = frame.with_columns(label=_of_rating(source.rating_classes))
    spans: list[list[dict[str, Any]] | None] = [None] * rows.height
    bad_spans: list[str | None] = [None] * rows.height
    if source.tokens:
        texts, spans, bad_spans = tagged(source, rows)
        frame = frame.with_columns(pl.Series("text", texts, dtype=pl.String))
    if reader.task == "entities" and not source.tags:
        spans, bad_spans = spans_of(source, rows, frame["text"].to_list(), reader)
    frame = frame.with_columns(
        pl.Series("spans", spans, dtype=SPANS), pl.Series("_spans", bad_spans, dtype=pl.String)
    )
    return frame.with_columns(_reason(source, reader).alias(_BAD)).select(*DRAFT, _BAD, "_raw")


def _reason(source: TextSource, reader: Reader) -> pl.Expr:
    """The first thing that is wrong with a row of a draft, by name; null: nothing."""
    task, unlabelled = reader.task, pl.lit(reader.unlabelled)
    unknown = pl.col("item_id").is_not_null() & pl.col("text").is_null()
    wrong: list[tuple[pl.Expr, str]] = []
    if isinstance(source, LabelledFiles) and source.items is not None:
        wrong.append((unknown, "unknown_item"))
    if source.answer:
        wrong.append((pl.col("_answer") != "accept", "not_accepted"))
    wrong.append((unsayable(pl.col("text")), "empty_text"))
    if task == "sentiment" and not source.label:
        rated = pl.col("rating").is_not_null()
        wrong.append((~rated & ~(unlabelled & pl.col("_unrated")), "rating_not_a_number"))
        wrong.append((rated & pl.col("label").is_null(), "rating_above_all_classes"))
    elif task in ("classify", "sentiment"):
        missing = pl.col("label").is_null() & ~unlabelled
        if task == "sentiment":  # a rating alone teaches too
            missing &= pl.col("rating").is_null()
        wrong.append((missing, "label_missing"))
    elif task == "relevance":
        wrong.append((unsayable(pl.col("query")), "empty_query"))
        wrong.append((pl.col("grade").is_null(), "grade_not_a_number"))
        heavy = pl.col("weight").is_null() | (pl.col("weight") <= 0)
        wrong.append((heavy, "weight_not_above_zero"))
    if source.split:
        wrong.append((unsayable(pl.col("split")), "split_missing"))
    if source.time:
        wrong.append((pl.col("time").is_null(), "time_unreadable"))
    reason: pl.Expr = pl.col("_spans")
    for condition, name in reversed(wrong):
        reason = pl.when(condition).then(pl.lit(name)).otherwise(reason)
    return reason


def _of_rating(classes: Mapping[str, float]) -> pl.Expr:
    """The first class whose highest rating is not below the row's."""
    label: pl.Expr = pl.lit(None, dtype=pl.String)
    for name, highest in reversed(list(classes.items())):
        label = pl.when(pl.col("rating") <= highest).then(pl.lit(name)).otherwise(label)
    return label


def _quarantine(bad: pl.DataFrame) -> pl.DataFrame:
    return bad.select(reason=_BAD, source="source", row="row", raw="_raw")


def _no_rows() -> pl.DataFrame:
    return pl.DataFrame(schema=QUARANTINE)
