"""Icecat: full retrieval over 19,406 products, for queries that nothing was fitted on.

Candidates are what BM25 finds in any field; trees over what is said of query and title, and the
fields' own scores, put them in order, fitted on the judgements of the other folds' queries.
Products that nobody judged count as not relevant, in fitting and in judging.
"""

from __future__ import annotations

import csv
import gzip
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from benchmarks.kept import Kept
from benchmarks.result import Figure
from raysys.evaluation.intervals import Bootstrap
from raysys.learners.relevance_blend import folds_by_query
from raysys.learners.relevance_trees import RelevanceTreesLearner, RelevanceTreesSettings
from raysys.retrieval.fuse import fuse
from raysys.retrieval.lexical import LexicalIndex
from raysys.text.encoder import Encoder
from raysys.text.models import PACKAGED
from raysys.text.pairs import Pairs
from raysys.text.relevance_features import PairFeatures

FIELDS = ("title", "name", "description", "attributes", "values")
FOLDS, SEEDS, POOL, CHUNK = 10, 3, 100, 2000
VECTORS = ("trees", "floor", "none")
"""What MiniLM is for: candidates and columns of the trees, or what they have to beat alone."""
TREES = {"n_estimators": 100, "learning_rate": 0.05, "num_leaves": 7, "colsample": 0.3,
         "subsample": 0.7, "lambda_l2": 10.0}  # fmt: skip


def texts_of(product: Mapping[str, object]) -> dict[str, str]:
    """The text of each field; the title with its brand."""
    names, values = [], []
    for key, value in product.items():
        if key.startswith("attr_") and value is not False:
            names.append(key[7:].replace("_", " "))
            if not isinstance(value, bool):
                values.append(str(value))
    title, brand = str(product["title"]), str(product["supplier"])
    return {
        "title": title if brand.lower() in title.lower() else f"{brand} {title}",
        "name": str(product["name"]),
        "description": str(product.get("short_description") or ""),
        "attributes": " ".join([*names, *values]),
        "values": " ".join(values),
    }


@dataclass(frozen=True)
class Names:
    """All that `fit_columns` reads of features that are columns already."""

    names: tuple[str, ...]


@dataclass(frozen=True)
class Icecat:
    """Products, judgements and BM25 of every field.

    Attributes:
        texts: of each field, by product.
        judged: of each query, the grade of products by their row.
        scores: float32[queries, products] of each field.
    """

    texts: dict[str, list[str]]
    judged: dict[str, dict[int, int]]
    scores: dict[str, np.ndarray]

    @classmethod
    def read(cls, folder: Path) -> Icecat:
        """Queries for which something was found relevant."""
        with gzip.open(folder / "icecat_products.jsonl.gz", "rt", encoding="utf-8") as lines:
            products = [json.loads(line) for line in lines]
        row = {product["id"]: at for at, product in enumerate(products)}
        every = [texts_of(product) for product in products]
        texts = {field: [each[field] for each in every] for field in FIELDS}
        judged: dict[str, dict[int, int]] = defaultdict(dict)
        with (folder / "icecat_judgements.csv").open(encoding="utf-8") as lines:
            for line in csv.DictReader(lines):
                if line["docid"] in row:
                    judged[line["query"]][row[line["docid"]]] = int(line["rating"])
        judged = {query: judged[query] for query in sorted(judged) if any(judged[query].values())}
        scores = {}
        for field in FIELDS:
            index = LexicalIndex.build(texts[field])
            found = [index.scores(query) for query in judged]
            scores[field] = np.stack(
                [
                    np.zeros(len(products), np.float32) if each is None else each[index.row_of_item]
                    for each in found
                ]
            )
        return cls(texts, judged, scores)

    def ndcg(self, rankings: Sequence[np.ndarray]) -> np.ndarray:
        """NDCG@10 of each query's ranking of products (rows, best first)."""
        discount = 1 / np.log2(np.arange(2, 12))
        values = []
        for ranked, judged in zip(rankings, self.judged.values(), strict=True):
            gain = np.array([judged.get(int(row), 0) for row in ranked[:10]], dtype=float)
            best = np.sort(list(judged.values()))[::-1][:10]
            values.append(gain @ discount[: len(gain)] / (best @ discount[: len(best)]))
        return np.array(values)

    def best(self, scores: np.ndarray, limit: int) -> list[np.ndarray]:
        """Rows of each query's highest scores above 0, best first."""
        order = np.argsort(-scores, axis=1, kind="stable")[:, :limit]
        return [rows[each[rows] > 0] for rows, each in zip(order, scores, strict=True)]


def candidates(shop: Icecat, more: Sequence[np.ndarray] = ()) -> tuple[np.ndarray, np.ndarray]:
    """Query number and product row of every candidate: the best of any field, and `more`."""
    found = [shop.best(shop.scores[field], POOL) for field in FIELDS[:4]]
    lists = [
        np.unique(np.concatenate([*each, *extra]))
        for *each, extra in zip(*found, [[m[q] for m in more] for q in range(len(shop.judged))],
                                strict=True)
    ]  # fmt: skip
    return np.repeat(np.arange(len(lists)), [len(each) for each in lists]), np.concatenate(lists)


def dense(shop: Icecat, kept: Kept) -> tuple[np.ndarray, float]:
    """Cosines float32[queries, products] of titles by the packaged MiniLM, and seconds."""
    texts, seconds = [*shop.judged, *shop.texts["title"]], 0.0
    parts = []
    for at in range(0, len(texts), CHUNK):
        few = texts[at : at + CHUNK]

        def run(few: list[str] = few) -> tuple[dict[str, np.ndarray], dict[str, float]]:
            return {"vectors": Encoder.open(PACKAGED, 48, 1).encode(few).astype(np.float16)}, {}

        outcome = kept.stage(f"icecat-vectors-{at:05d}", few, run)
        parts.append(outcome["vectors"].astype(np.float32))
        seconds += outcome.seconds
    vectors = np.concatenate(parts)
    return vectors[: len(shop.judged)] @ vectors[len(shop.judged) :].T, seconds


def ordered(
    shop: Icecat, kept: Kept, query: np.ndarray, row: np.ndarray, extra: Mapping[str, np.ndarray]
) -> tuple[list[np.ndarray], float]:
    """Each query's candidates, put in order by trees that never saw it; and seconds."""
    names = list(shop.judged)
    table = pa.table(
        {
            "query": [names[at] for at in query],
            "text": [shop.texts["title"][at] for at in row],
            "grade": np.array(
                [shop.judged[names[q]].get(int(r), 0) for q, r in zip(query, row, strict=True)],
                dtype=np.float32,
            ),
        }
    )
    pairs = Pairs.of(table)
    fields = {f"bm25_{field}": shop.scores[field][query, row] for field in FIELDS}
    shares = {
        f"share_{field}": shop.scores[field][query, row]
        / np.maximum(shop.scores[field].max(1)[query], 1e-6)
        for field in FIELDS
    }
    more = {**fields, **shares, **extra}

    def describe() -> tuple[dict[str, np.ndarray], dict[str, float]]:
        found = PairFeatures.learn(pairs, shop.texts["title"], factors=64)
        return {"columns": found.of(pairs), "names": np.array(found.names)}, {"pairs": len(pairs)}

    about = {"extra": list(extra), "n": len(query)}
    described = kept.stage("icecat-features", about, describe)
    columns = np.concatenate([described["columns"], np.stack(list(more.values()), axis=1)], axis=1)
    features = Names(tuple(str(name) for name in described["names"]))
    said, seconds = np.zeros(len(pairs)), described.seconds
    for seed in range(SEEDS):

        def fit(seed: int = seed) -> tuple[dict[str, np.ndarray], dict[str, float]]:
            fold, found = folds_by_query(pairs, FOLDS, seed), np.zeros(len(pairs))
            for number in range(FOLDS):
                inside = np.flatnonzero(fold != number)
                model = RelevanceTreesLearner(RelevanceTreesSettings(**TREES)).fit_columns(
                    features, pairs.take(inside), columns[inside], None, None, seed, tuple(more)
                )  # type: ignore[arg-type]
                found[fold == number] = model.grades(columns[fold == number])
            return {"said": found}, {}

        fitted = kept.stage(f"icecat-trees-{seed}", {**about, "trees": TREES}, fit)
        said, seconds = said + fitted["said"], seconds + fitted.seconds
    rankings = []
    for number in range(len(names)):
        rows = np.flatnonzero(query == number)
        rankings.append(row[rows[np.argsort(-said[rows], kind="stable")]])
    return rankings, seconds


def figures(folder: Path, kept: Kept, *, vectors: str) -> list[Figure]:
    """Beside BM25 on title and brand and, unless `vectors` is none, its fusion with MiniLM."""
    shop = Icecat.read(folder)
    title = shop.best(shop.scores["title"], 1000)
    values = {"bm25": shop.ndcg(title)}
    rows: list[Figure] = []
    more, extra = [], {}
    if vectors != "none":
        cosine, seconds = dense(shop, kept)
        near = [np.argsort(-each, kind="stable")[:1000].astype(np.int32) for each in cosine]
        both = [
            fuse([(a.astype(np.int32), np.arange(1, len(a) + 1, dtype=np.int32)),
                  (b, np.arange(1, len(b) + 1, dtype=np.int32))]).rows
            for a, b in zip(title, near, strict=True)
        ]  # fmt: skip
        values |= {"minilm": shop.ndcg(near), "fusion": shop.ndcg(both)}
        rows.append(Figure("icecat_vectors_seconds", round(seconds, 1), "s"))
        rows.append(Figure("icecat_vectors_rate", round(len(shop.texts["title"]) / max(
            seconds, 1e-9), 1), "texts/s"))  # fmt: skip
        more = [[each[:POOL] for each in near]] if vectors == "trees" else []
    query, row = candidates(shop, more)
    if vectors == "trees":
        extra = {"cosine": cosine[query, row]}
    ranked, seconds = ordered(shop, kept, query, row, extra)
    values["trees"] = shop.ndcg(ranked)
    draws = Bootstrap(np.arange(len(shop.judged)))
    baseline = "bm25" if vectors == "none" else "fusion"
    for name, each in values.items():
        print(f"icecat {name:8s} NDCG@10 {each.mean():.4f}")
    best = "trees" if values["trees"].mean() > values[baseline].mean() else baseline
    if best == baseline:
        print("the simple baseline wins, and is what is used")
    of = {
        "ndcg10": (draws.mean(values[best]), "≥ .75", f"{best}; {len(shop.judged)} queries, "
                   f"{FOLDS} folds by query, {SEEDS} seeds, full retrieval"),
        "ndcg10_baseline": (draws.mean(values[baseline]), "", f"{baseline} on title and brand"),
        "ndcg10_bm25": (draws.mean(values["bm25"]), "", "title and brand"),
        "ndcg10_gain": (draws.difference(values[best], values[baseline]), "> 0",
                        "paired, drawn by query"),
    }  # fmt: skip
    found = [
        Figure(f"icecat_{name}", interval.value, "", interval.low, interval.high, aim, reference)
        for name, (interval, aim, reference) in of.items()
    ]
    rows.append(Figure("icecat_trees_seconds", round(seconds, 1), "s"))
    rows.append(Figure("icecat_trees_rate", round(len(query) * SEEDS * FOLDS / max(
        seconds, 1e-9), 1), "pairs/s"))  # fmt: skip
    return [*found, *rows]
