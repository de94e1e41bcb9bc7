"""Which column is what, where the YAML does not say it: by the names that data sets use.

A name alone decides nothing where values contradict it: spans have to be spans, ratings numbers.
Of names that are equally usual two are not chosen between: then the YAML has to say it.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from raysys.datasets import files
from raysys.datasets.fetching import opened
from raysys.datasets.files import Fault, Part
from raysys.datasets.labelled_files import LabelledFiles, TextSource
from raysys.datasets.labelled_spans import named_values
from raysys.datasets.labelled_values import SENTIMENT_WORDS, rating
from raysys.datasets.layouts import parsed
from raysys.datasets.sentiment_scales import NUMBERED, sentiments_of, with_classes, with_names
from raysys.datasets.span_notations import told_spans
from raysys.errors import UserError

log = logging.getLogger("raysys")

Tiers = tuple[tuple[str, ...], ...]

TEXTS: Final[Tiers] = (
    ("text", "reviewbody", "reviewtext", "reviewcontent", "review", "content", "sentence",
     "comment", "tweet", "body", "document", "评论", "评论内容", "内容", "文本"),
    ("input", "title", "producttitle", "productname", "itemname", "itemtitle", "标题", "商品名称",
     "商品标题"),
    ("name", "query", "searchterm", "searchquery", "headline", "summary", "description"),
)  # fmt: skip
"""Names of texts, small and without signs; those of an earlier tier are taken before others."""

_ITEM_TEXTS: Final[Tiers] = (
    ("producttitle", "title", "productname", "itemname", "itemtitle"),
    ("text", "document", "passage", "content", "body", "name"),
    ("productdescription", "description"),
)
_LABELS: Final[Tiers] = (
    ("label", "labels", "class", "target", "sentiment", "polarity", "标签", "类别"),
    ("category", "categories", "categoryname", "productcategory", "productcategorytree",
     "categorypath", "categorylabel", "classname", "labelname", "topic", "intent"),
    ("categoryid", "classid", "labelid", "cat", "y"),
)  # fmt: skip
_SENTIMENTS: Final[Tiers] = (
    ("sentiment", "label", "labels", "polarity", "class", "target", "airlinesentiment", "标签"),
)
_RATINGS: Final[Tiers] = (
    ("starrating", "overall", "rating", "stars", "reviewrating", "reviewscore", "评分", "星级"),
    ("score", "star", "ratings", "grade"),
    ("label", "labels", "class"),
)
_SPANS: Final[Tiers] = (
    ("spans", "entities", "label", "labels", "annotations", "annotation", "ner", "ents"),
)
_TOKENS: Final[Tiers] = (("tokens", "token", "words", "word"),)
_TAGS: Final[Tiers] = (
    ("nertags", "tags", "nertag", "tag", "labels", "label", "ner", "iob", "bio"),
)
_ATTRIBUTES: Final[Tiers] = (
    ("attributes", "targetscores", "attrs", "attributevalues", "attributevaluepairs", "specs"),
)
_QUERIES: Final[Tiers] = (("query", "searchterm", "searchquery", "keyword", "q", "querytext"),)
_GRADES: Final[Tiers] = (
    ("relevance", "medianrelevance", "grade", "judgement", "judgment", "esclabel", "relevancy"),
    ("score", "label", "rating", "gain"),
)

_SOME: Final = 200  # rows by which columns are told
_ANSWERS: Final = {"accept", "reject", "ignore"}


def settled(sources: Sequence[TextSource], task: str) -> tuple[TextSource, ...]:
    """Sources that say for each column that the task needs which it is.

    What was guessed is logged.

    Raises:
        UserError: no files; a column that the task needs, and none that is clearly it; labels
            of sentiment that stand for nothing known.
    """
    return tuple(
        _settled(source, task, f"sources.{number}") if isinstance(source, LabelledFiles) else source
        for number, source in enumerate(sources)
    )


def text_of(columns: Sequence[str]) -> str | None:
    """The one column that is the text by its name; None: none is, or several may be."""
    return _named(columns, TEXTS)


def _settled(source: LabelledFiles, task: str, where: str) -> LabelledFiles:
    lacks = _lacks(source, task)
    classes = "rating_classes" in source.model_fields_set
    if lacks:
        part, rows = _head(source)
        found = _guessed(source, task, rows, lacks)
        missing = [role for role in lacks if role not in _covered(found)]
        if missing:
            raise _unclear(task, missing[0], rows.columns, where)
        if part.format == "json" and {"product", "spans"} <= {*rows.columns} and not source.group:
            found["group"] = "product"  # of MAVE, whose rows are paragraphs
        told = ", ".join(f"{role}: {name}" for role, name in found.items())
        log.info("text: %s: guessed by the names of columns: %s; YAML may say others", where, told)
        source = LabelledFiles(**{**source.model_dump(), **found})
    source = _with_names(source, task)
    if task == "sentiment" and source.label:
        return with_names(source, where)
    if task == "sentiment" and source.rating and not classes:
        of_label = "rating" in lacks and _plain(source.rating) in _RATINGS[-1]
        return with_classes(source, where, of_label=of_label)
    return source


def _lacks(source: LabelledFiles, task: str) -> list[str]:
    """Roles that the task needs and the source does not name."""
    lacks = []
    if task == "relevance":
        lacks += [role for role in ("query", "grade") if not getattr(source, role)]
    if not source.text and not source.tokens and source.items is None:
        lacks.append("text")
    if task == "classify" and not source.label:
        lacks.append("label")
    if task == "sentiment" and not source.label and not source.rating:
        lacks.append("rating")
    told = source.spans or source.tags or source.attributes or source.attribute_columns
    if task == "entities" and not told:
        lacks.append("spans")
    return lacks


def _covered(found: Mapping[str, Any]) -> set[str]:
    """Roles that what was found says: some say another, too."""
    covered = set(found)
    if "tokens" in found:
        covered.add("text")
    if covered & {"tags", "attributes"}:
        covered.add("spans")
    if "label" in covered:
        covered.add("rating")
    return covered


def _guessed(
    source: LabelledFiles, task: str, rows: pl.DataFrame, lacks: Sequence[str]
) -> dict[str, Any]:
    """Role → column, for the roles that are clear."""
    taken = {*source.roles().values()}
    columns = [name for name in rows.columns if name not in taken and not name.startswith("_")]
    found: dict[str, Any] = {}

    def take(role: str, tiers: Tiers, fits: Any = lambda values: True) -> None:
        left = [name for name in columns if name not in found.values()]
        name = _named([c for c in left if fits(rows[c].drop_nulls())], tiers)
        if name is not None:
            found[role] = name

    if "query" in lacks:
        take("query", _QUERIES, _is_text)
    if "grade" in lacks:
        take("grade", _GRADES, _is_numbers)
    if "spans" in lacks:
        _take_spans(source, take, found)
    if "label" in lacks:
        take("label", _LABELS)
    if "rating" in lacks:
        take("label", _SENTIMENTS, _is_sentiments)
        take("rating", _RATINGS if "label" not in found else _RATINGS[:1], _is_numbers)
    if not source.answer and _is_answers(columns, rows):
        found["answer"] = "answer"
    if "text" in lacks and "tokens" not in found:
        take("text", _ITEM_TEXTS if task == "relevance" else TEXTS, _is_text)
        left = [name for name in columns if name not in found.values()]
        if "text" not in found and len(rows.columns) == 2 == len(left) + 1:
            found["text"] = left[0]
    return found


def _take_spans(source: LabelledFiles, take: Any, found: dict[str, Any]) -> None:
    """Spans of a text, or else tags of tokens, or else attributes."""
    if not source.tokens:
        take("spans", (_SPANS[0][:2],), _is_spans)
    if "spans" not in found and not source.text:
        if not source.tokens:
            take("tokens", _TOKENS, _is_list)
        if "tokens" in found or source.tokens:
            take("tags", _TAGS, _is_list)
        if "tags" not in found:
            found.pop("tokens", None)
    if "spans" not in found and "tags" not in found:
        take("spans", _SPANS, _is_spans)
    if "spans" not in found and "tags" not in found:
        take("attributes", _ATTRIBUTES, _is_mapping)


def _named(columns: Sequence[str], tiers: Tiers) -> str | None:
    """The only column that has a name of the first tier that any has."""
    for tier in tiers:
        hits = [name for name in columns if _plain(name) in tier]
        if hits:
            return hits[0] if len(hits) == 1 else None
    return None


def _plain(name: str) -> str:
    return re.sub(r"[\W_]+", "", name.lower())


def _is_text(values: pl.Series) -> bool:
    if values.dtype.is_numeric() or values.dtype.is_nested():
        return False
    said = values.cast(pl.String, strict=False)
    return said.cast(pl.Float64, strict=False).null_count() > 0 or not said.len()


def _is_numbers(values: pl.Series) -> bool:
    name = values.name
    said = values.to_frame().select(rating(values.to_frame(), name).alias(name))[name]
    return said.len() > 0 and said.null_count() < said.len() / 2


def _is_list(values: pl.Series) -> bool:
    some = _some(values)
    return bool(some) and all(isinstance(value, list | tuple) for value in some)


def _is_mapping(values: pl.Series) -> bool:
    some = _some(values)
    return bool(some) and all(named_values(value) is not None for value in some)


def _is_spans(values: pl.Series) -> bool:
    """Whether most values are lists of spans, some of them with any."""
    some, well, spans = _some(values), 0, 0
    for value in some:
        try:
            spans += len(list(told_spans(value)))
            well += 1
        except (ValueError, TypeError, KeyError, IndexError, AttributeError):
            continue
    return well > len(some) / 2 and (spans > 0 or all(isinstance(v, list) for v in some))


def _is_sentiments(values: pl.Series) -> bool:
    said = {_word(value) for value in values.to_list()}
    return bool(said) and (
        said <= {*SENTIMENT_WORDS} or any(said <= {*names} for names in NUMBERED)
    )


def _is_answers(columns: Iterable[str], rows: pl.DataFrame) -> bool:
    return "answer" in columns and {*rows["answer"].drop_nulls().to_list()} <= _ANSWERS


def _word(value: object) -> str:
    if isinstance(value, str) and value.startswith("["):
        value = parsed(value)
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    return re.sub(r"^(-?\d+)\.0+$", r"\1", str(value).strip().lower())


def _some(values: pl.Series) -> list[Any]:
    told = values.head(_SOME).to_list()
    return [parsed(value) if isinstance(value, str) else value for value in told]


def _head(source: LabelledFiles) -> tuple[Part, pl.DataFrame]:
    """The first rows of the first file that has any.

    Raises:
        UserError: none has.
    """
    table, faults = source.whole(), []
    for part in files.find(table):
        for block in files.read(part, table):
            faults += [(part.label, fault) for fault in block.faults]
            if block.rows.height:
                return part, block.rows.head(_SOME)
    where, fault = faults[0] if faults else (source.paths[0], Fault(0, "empty_file", "no rows"))
    raise UserError(
        f"no row could be read: {fault.reason}, {fault.raw[:200]!r}",
        where=where,
        mend="check the file, and `format`, `delimiter` and `quoted` if they are given",
    )


def _unclear(task: str, role: str, columns: Sequence[str], where: str) -> UserError:
    known = {"rating": "rating or label", "spans": "spans, tags or attributes"}.get(role, role)
    shown = ", ".join(columns[:30]) + (", …" if len(columns) > 30 else "")
    if role == "text":
        what = "text: say which column is the text: none is clearly it"
    else:
        what = f"{task} needs to know which column is the {known}: none is clearly it"
    mend = f"add `{role}: COLUMN`"
    if task == "entities":
        mend += ", or `tokens` and `tags`, `attributes`, or `attribute_columns: {brand: COLUMN}`"
        mend += "; a token a line is `format: conll`"
    else:
        mend += "; if the first line is no header, name the columns: `header: [label, text]`"
    return UserError(f"{what}; the file has: {shown}", where=where, mend=mend)


def _with_names(source: LabelledFiles, task: str) -> LabelledFiles:
    """Names of labels and tags that are numbers, as Hugging Face keeps them in Parquet files."""
    wants_tags = source.tags and not source.tag_names
    label = source.label
    if task == "sentiment" and not label and source.rating:
        label = (source.rating,)  # classes of stars have names, too
    wants_labels = len(label) == 1 and not source.label_names
    if not wants_tags and not wants_labels:
        return source
    part = files.find(source.whole())[0]
    if part.format != "parquet":
        return source
    try:
        with opened(part.path) as file:
            stored = pq.ParquetFile(file).schema_arrow.metadata or {}
        features = json.loads(stored[b"huggingface"])["info"]["features"]
    except (OSError, EOFError, pa.ArrowException, KeyError, ValueError, TypeError):
        return source
    found: dict[str, Any] = {}
    if wants_tags and (names := _class_names(features.get(source.tags))):
        found["tag_names"] = tuple(names)
    if wants_labels and (names := _class_names(features.get(label[0]))):
        known = sentiments_of(names) if task == "sentiment" else None
        if source.label or known:
            found["label"] = label
            found["label_names"] = {str(at): name for at, name in enumerate(known or names)}
    if found:
        log.info("text: names of labels are those that %s holds", part.label)
    return source.model_copy(update=found)


def _class_names(feature: Any) -> list[str] | None:
    """The names of a `ClassLabel`, or of a list of them."""
    while isinstance(feature, list | dict):
        if isinstance(feature, list):
            feature = feature[0] if feature else None
        elif isinstance(feature.get("names"), list):
            return [str(name) for name in feature["names"]]
        else:
            feature = feature.get("feature")
    return None
