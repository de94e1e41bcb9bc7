"""Synonyms that a shop's own log tells of: words that lead to the same items.

A word stands in contexts: a query's word in the items that were clicked for the query, or for the
one it was rephrased into; a title's word in the item and in the queries that it was clicked for.
Two words with like contexts mean like things. Like: the cosine of their positive pointwise mutual
information with each context (Bullinaria and Levy 2007, doi:10.3758/BF03193020), damped where few
contexts speak for it (Bell and Koren 2007). Words that stand side by side ("red dress") share their
contexts too and are no synonyms: they add to, and do not replace each other. Pairs that are seen
together too often are left out.
"""

from __future__ import annotations

import numpy as np
import polars as pl
from pydantic import Field
from scipy import sparse

from raysys.config import Settings
from raysys.errors import UserError
from raysys.retrieval import segmentation
from raysys.text.augment.synonyms import Thesaurus

_TOKEN = r"\p{L}[\p{L}\p{M}'’-]+"
_OTHER = f"[^{segmentation.HAN}]"
_TOKEN_BESIDE_CHINESE = rf"[{segmentation.HAN}]+|[\p{{L}}&&{_OTHER}][\p{{L}}\p{{M}}'’\-&&{_OTHER}]+"
_BLOCK = 512


class SynonymLearning(Settings):
    """What is asked of a pair of words.

    Attributes:
        least_contexts: items and queries that both words must share.
        shrinkage: shared contexts at which the cosine counts half.
        most_together: of the texts with the rarer word at most this share has the other too.
        largest_share: words in more than this share of all contexts say nothing (`the`, `for`).
        rephrasings: how many queries before the one that led to a click share in it, each half
            as much as the one after it.
        most: synonyms kept a word.
        least_score: of a pair, 0 … 1.
    """

    least_contexts: int = Field(3, ge=1)
    shrinkage: float = Field(3.0, ge=0)
    most_together: float = Field(0.1, ge=0, le=1)
    largest_share: float = Field(0.2, gt=0, le=1)
    rephrasings: int = Field(2, ge=0)
    most: int = Field(10, ge=1)
    least_score: float = Field(0.1, ge=0, le=1)


def clicked_queries(events: pl.DataFrame, rephrasings: int = 2) -> pl.DataFrame:
    """Which queries led to which items.

    Args:
        events: `schema.EVENTS`; event_type, timestamp, item_id, query and session_id are read.
            What was clicked, favoured, put in the cart or bought counts, for the query it names,
            else for the session's last search, and in part for those before it that led nowhere.
        rephrasings: see `SynonymLearning`.

    Returns:
        query (lower case), item_id, weight (float64): summed over the log, sorted.
    """
    query = pl.col("query").str.to_lowercase().str.strip_chars()
    frame = events.select(
        "event_type", "timestamp", "item_id", "session_id",
        pl.when(query != "").then(query).alias("query"),
    )  # fmt: skip
    wanted = frame.filter(
        pl.col("event_type").is_in(["click", "favorite", "cart", "purchase"])
        & pl.col("item_id").is_not_null()
    )
    earlier = pl.col("timestamp").shift(1).over("session_id", order_by="timestamp")
    wanted = wanted.with_columns(earlier=earlier).with_row_index("click")
    searches = (
        frame.filter((pl.col("event_type") == "search") & pl.col("query").is_not_null())
        .filter(pl.col("session_id").is_not_null())
        .sort("session_id", "timestamp", "query")
        .filter(  # one search, not each page of its results
            (pl.col("query") != pl.col("query").shift(1)).fill_null(True)
            | (pl.col("session_id") != pl.col("session_id").shift(1))
        )
        .select("session_id", "timestamp", pl.col("query").alias("searched"))
    )
    before = (
        wanted.join(searches, on="session_id", suffix="_searched")
        .filter(pl.col("timestamp_searched") <= pl.col("timestamp"))
        .sort("click", "timestamp_searched", "searched", descending=[False, True, False])
        .filter(  # the query that the click itself names is counted below
            pl.col("query").is_null() | (pl.col("query") != pl.col("searched"))
        )
        .with_columns(back=pl.int_range(pl.len()).over("click") + pl.col("query").is_not_null())
        .filter(pl.col("back") <= rephrasings)
        .filter(  # a query that led to a click was not rephrased: what follows is another wish
            (pl.col("back") == 0)
            | pl.col("earlier").is_null()
            | (pl.col("timestamp_searched") > pl.col("earlier"))
        )
        .select(pl.col("searched").alias("query"), "item_id", weight=0.5 ** pl.col("back"))
    )
    named = wanted.filter(pl.col("query").is_not_null()).select(
        "query", "item_id", weight=pl.lit(1.0)
    )
    return (
        pl.concat([named, before])
        .group_by("query", "item_id")
        .agg(pl.col("weight").sum())
        .sort("query", "item_id")
    )


def learn_synonyms(
    clicks: pl.DataFrame, titles: pl.DataFrame, settings: SynonymLearning | None = None
) -> Thesaurus:
    """Synonyms from which queries led to which items.

    Args:
        clicks: query, item_id, weight; see `clicked_queries`. Of training folds only.
        titles: item_id, title.
        settings: what is asked of a pair.

    Raises:
        UserError: no query led to an item.
    """
    settings = settings or SynonymLearning()
    if clicks.is_empty():
        raise UserError(
            "no query led to an item, so no synonym can be learned",
            mend="take a log with queries: events with `query`, or searches with `session_id`",
        )
    titles = titles.filter(pl.col("item_id").is_in(clicks["item_id"].implode()))
    of_query = _tokens(clicks.select("query").unique().sort("query"), "query")
    of_title = _tokens(titles.select("item_id", "title").sort("item_id"), "title")
    pairs = clicks.with_columns(
        item=pl.lit("i:") + pl.col("item_id"), asked=pl.lit("q:") + pl.col("query")
    )
    weighed = pl.concat(
        [
            pairs.join(words_of, on=key).select("word", pl.col(context).alias("at"), "weight")
            for words_of, key, context in (
                (of_query, "query", "item"),
                (of_title, "item_id", "item"),
                (of_title, "item_id", "asked"),
            )
        ]
    )
    weighed = weighed.group_by("word", "at").agg(pl.col("weight").sum()).sort("word", "at")
    words, contexts = weighed["word"].unique().sort(), weighed["at"].unique().sort()
    row = words.search_sorted(weighed["word"]).to_numpy()
    column = contexts.search_sorted(weighed["at"]).to_numpy()
    shape = (len(words), len(contexts))
    seen = sparse.csr_matrix((np.ones(len(row)), (row, column)), shape=shape)
    pmi = _positive_pmi(weighed["weight"].to_numpy(), row, column, shape)
    texts = pl.concat(
        [
            of_query.select((pl.lit("q:") + pl.col("query")).alias("text"), "word"),
            of_title.select((pl.lit("i:") + pl.col("item_id")).alias("text"), "word"),
        ]
    )
    together = _incidence(texts, words)
    many = np.diff(seen.indptr)
    usable = (many >= settings.least_contexts) & (many <= settings.largest_share * shape[1])
    parts = []
    for start in range(0, len(words), _BLOCK):
        rows = np.flatnonzero(usable[start : start + _BLOCK]) + start
        if len(rows):
            parts.append(_near(rows, pmi, seen, together, usable, settings))
    schema = {"a": pl.Int64, "b": pl.Int64, "score": pl.Float64}
    found = pl.concat([pl.DataFrame(schema=schema), *parts])
    return Thesaurus(
        pl.DataFrame(
            {
                "word": words.gather(found["a"]),
                "synonym": words.gather(found["b"]),
                "score": found["score"],
            }
        )
    )


def _tokens(frame: pl.DataFrame, column: str) -> pl.DataFrame:
    """Each distinct word of a text beside what the text is of; Chinese as it is augmented."""
    text = pl.col(column).fill_null("").str.to_lowercase()
    chinese = text.str.contains(rf"[{segmentation.HAN}]") & ~text.str.contains(
        segmentation.KANA.pattern
    )
    found = (
        frame.with_columns(
            chinese=chinese,
            word=pl.when(chinese)
            .then(text.str.extract_all(_TOKEN_BESIDE_CHINESE))
            .otherwise(text.str.extract_all(_TOKEN)),
        )
        .explode("word")
        .drop_nulls("word")
    )
    run = pl.col("chinese") & pl.col("word").str.contains(rf"^[{segmentation.HAN}]+$")
    runs = found.filter(run)["word"].unique(maintain_order=True)
    if len(runs):
        # signs alone are no words that could mean the same
        cut = [segmentation.chinese_words(each) if segmentation.is_there() else [] for each in runs]
        parts = pl.DataFrame(
            {"word": runs, "part": cut}, schema={"word": pl.String, "part": pl.List(pl.String)}
        )
        found = (
            found.join(parts, on="word", how="left", maintain_order="left")
            .with_columns(word=pl.when(run).then(pl.col("part")).otherwise(pl.concat_list("word")))
            .drop("part")
            .explode("word")
            .drop_nulls("word")
        )
    return found.drop("chinese").unique(maintain_order=True)


def _positive_pmi(
    weight: np.ndarray, row: np.ndarray, column: np.ndarray, shape: tuple[int, int]
) -> sparse.csr_matrix:
    """max(0, log p(w, c) / (p(w) p(c))), rows of length one."""
    of_word = np.bincount(row, weight, minlength=shape[0])
    of_context = np.bincount(column, weight, minlength=shape[1])
    value = np.log(weight * weight.sum() / (of_word[row] * of_context[column]))
    matrix = sparse.csr_matrix((np.maximum(value, 0.0), (row, column)), shape=shape)
    norm = np.sqrt(np.asarray(matrix.multiply(matrix).sum(1)).ravel())
    return sparse.diags(1 / np.maximum(norm, 1e-12)) @ matrix


def _incidence(texts: pl.DataFrame, words: pl.Series) -> sparse.csr_matrix:
    """Which text has which word: float[words, texts]."""
    names = texts["text"].unique().sort()
    row = words.search_sorted(texts["word"]).to_numpy()
    column = names.search_sorted(texts["text"]).to_numpy()
    return sparse.csr_matrix((np.ones(len(row)), (row, column)), shape=(len(words), len(names)))


def _near(
    rows: np.ndarray,
    pmi: sparse.csr_matrix,
    seen: sparse.csr_matrix,
    together: sparse.csr_matrix,
    usable: np.ndarray,
    settings: SynonymLearning,
) -> pl.DataFrame:
    """Synonyms of some of the words: a, b, score."""
    shared = (seen[rows] @ seen.T).tocoo()
    a, b, count = rows[shared.row], shared.col, shared.data
    enough = (count >= settings.least_contexts) & usable[b] & (a != b)
    a, b, count = a[enough], b[enough], count[enough]
    schema = {"a": pl.Int64, "b": pl.Int64, "score": pl.Float64}
    if not len(a):
        return pl.DataFrame(schema=schema)
    cosine = np.asarray(pmi[a].multiply(pmi[b]).sum(1)).ravel()
    beside = np.asarray(together[a].multiply(together[b]).sum(1)).ravel()
    texts = np.diff(together.indptr)
    apart = beside <= settings.most_together * np.minimum(texts[a], texts[b])
    score = cosine * count / (count + settings.shrinkage)
    return (
        pl.DataFrame({"a": a, "b": b, "score": score}, schema=schema)
        .filter(pl.Series(apart) & (pl.col("score") >= settings.least_score))
        .sort("a", "score", "b", descending=[False, True, False])
        .group_by("a", maintain_order=True)
        .head(settings.most)
    )
