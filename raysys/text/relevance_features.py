"""What can be said of a query and an item's text without a label: words, letters, numbers, vectors.

Everything is learned from texts alone (train and catalogue): document frequencies, spelling, the
factors of TF-IDF. A pair's features depend on the pair and on what was learned, never on the other
pairs asked for, so that a list scores alike alone and among others.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file, save_file

from raysys.text.factors import Factors
from raysys.text.pairs import Float32, Pairs
from raysys.text.shop_words import Spelling, plain_words, stems
from raysys.text.taken_apart import Said, longest_run, nearest, share, take_apart

Encode = Callable[[Sequence[str]], Float32]
"""Texts to unit vectors float32[n, d]."""

WORD_FEATURES: Final = (
    "query_words",
    "item_words",
    "query_characters",
    "item_characters",
    "query_numbers",
    "item_numbers",
    "corrected",  # words of the query that were put right
    "common_words",
    "coverage",  # share of the query's words that the item has
    "coverage_idf",  # weighted by how rare they are
    "coverage_typed_idf",  # without correction of spelling
    "item_coverage_idf",
    "jaccard",
    "bm25",
    "bm25_share",  # of what an item of the query's words alone would get
    "bm25_item_to_query",
    "pair_coverage",  # neighbours in the query that are neighbours in the item
    "longest_run",  # of the query's words, in order and side by side, in parts of the query
    "letters_coverage",  # 3-grams of the query without spaces that the item has
    "letters_jaccard",
    "fuzzy_coverage_idf",  # each word by its nearest in the item
    "fuzzy_least",
    "last_word",  # of the query, which in English names the thing
    "last_word_fuzzy",
    "last_word_at_end",  # near the end of the item's head, where English names the thing
    "first_word",
    "item_first_word",  # usually the brand
    "head_coverage_idf",  # in the item's words before the first preposition or comma
    "first_match",  # place of the first and of the last match, in parts of the item
    "last_match",
    "missing_idf_most",
    "missing_idf_sum",
    "query_idf_mean",
    "query_idf_most",
    "query_idf_least",
    "query_unknown",  # words that no text has
    "item_idf_mean",
    "numbers_coverage",
    "sizes_coverage",  # number and unit
    "ratio",
    "partial_ratio",
    "token_sort_ratio",
    "token_set_ratio",
    "jaro_winkler",
)
TIE: Final = 1e-6
"""Cosines nearer than this are equal: products of matrices round by their shape."""
K1: Final = 1.2
B: Final = 0.4


@dataclass
class PairFeatures:
    """Features of pairs, as learned from texts.

    Attributes:
        language: of the stems, as Snowball names it.
        documents: texts of items that were counted.
        frequency: in how many of them each stem is.
        query_frequency: in how many training queries each stem is.
        mean_length: of the items, in words.
        spelling: of queries.
        asked: the training queries.
        factors: of TF-IDF, by the kind of term.
        encode: text vectors to compare by cosine; None: none.
        crowd: float32[m, d], vectors of some item texts, with which cosines are compared.
    """

    language: str
    documents: int
    frequency: dict[str, int]
    query_frequency: dict[str, int]
    n_queries: int
    mean_length: float
    spelling: Spelling
    asked: frozenset[str]
    factors: dict[str, Factors]
    encode: Encode | None = None
    crowd: Float32 | None = None

    @classmethod
    def learn(
        cls,
        pairs: Pairs,
        catalogue: Sequence[str] = (),
        *,
        language: str = "english",
        factors: int = 64,
        encode: Encode | None = None,
        crowd: int = 20_000,
        seed: int = 0,
    ) -> PairFeatures:
        """Learn from the texts of pairs (their grades are not read) and of a catalogue.

        Args:
            pairs: for training.
            catalogue: further texts of items.
            language: of the stems, as Snowball names it.
            factors: of TF-IDF; 0: none.
            encode: text vectors to compare by cosine, already trained; None: none.
            crowd: so many item texts, drawn at random, that a cosine is compared with.
            seed: of the draws.
        """
        texts = list(dict.fromkeys([*pairs.items, *catalogue]))
        words = [plain_words(text) for text in texts]
        items = [frozenset(stems(each, language)) for each in words]
        queries = [frozenset(stems(plain_words(text), language)) for text in pairs.queries]
        frequency = Counter(stem for each in items for stem in sorted(each))
        asked = Counter(stem for each in queries for stem in sorted(each))
        drawn = np.random.default_rng(seed).permutation(len(texts))[:crowd]
        return cls(
            language=language,
            documents=len(texts),
            frequency=dict(frequency),
            query_frequency=dict(asked),
            n_queries=len(queries),
            mean_length=max(1.0, float(np.mean([len(each) for each in words]))),
            spelling=Spelling.of(words),
            asked=frozenset(pairs.queries),
            factors={
                kind: found
                for kind in ("words", "letters")
                if factors and (found := Factors.learn(kind, texts, factors, language, seed))
            },
            encode=encode,
            crowd=None if encode is None else encode([texts[at] for at in sorted(drawn)]),
        )

    @property
    def names(self) -> tuple[str, ...]:
        """Of the columns of `of`."""
        return (
            *WORD_FEATURES,
            *(f"cosine_{kind}" for kind in self.factors),
            *(("cosine", "cosine_typed", "cosine_place", "cosine_behind", "cosine_feedback")
              if self.encode else ()),
        )  # fmt: skip

    def of(self, pairs: Pairs) -> Float32:
        """Features float32[n, len(names)]; NaN where a feature has nothing to say."""
        queries = [self.query(text) for text in pairs.queries]
        items = [self.item(text) for text in pairs.items]
        found = np.full((len(pairs), len(self.names)), np.nan, dtype=np.float32)
        width = len(WORD_FEATURES)
        for row, (query, item) in enumerate(zip(pairs.query, pairs.item, strict=True)):
            own = pairs.queries[query] in self.asked
            found[row, :width] = self._words(queries[query], items[item], own)
        lines = [each.line for each in queries]
        for column, factors in enumerate(self.factors.values(), start=width):
            left, right = factors.of(lines), factors.of(pairs.items)
            found[:, column] = (left[pairs.query] * right[pairs.item]).sum(1)
        if self.encode is not None:
            found[:, -5:] = self._cosines(pairs, lines)
        return found

    def query(self, text: str) -> Said:
        """A query taken apart, its spelling put right."""
        typed = plain_words(text)
        return take_apart(self.spelling.corrected(typed), self.language, typed)

    def item(self, text: str) -> Said:
        """An item's text taken apart."""
        return take_apart(plain_words(text), self.language)

    def idf(self, stem: str) -> float:
        """Inverse document frequency among items, never negative (Robertson and Zaragoza 2009)."""
        n = self.frequency.get(stem, 0)
        return math.log(1.0 + (self.documents - n + 0.5) / (n + 0.5))

    def _query_idf(self, stem: str, own: bool) -> float:
        """Among the training queries, of which a training query itself does not count."""
        n = max(0, self.query_frequency.get(stem, 0) - own)
        return math.log(1.0 + (self.n_queries - own - n + 0.5) / (n + 0.5))

    def _words(self, query: Said, item: Said, own: bool) -> list[float]:
        """`WORD_FEATURES`; `own`: it is one of the training queries."""
        from rapidfuzz import fuzz
        from rapidfuzz.distance import JaroWinkler

        asked = list(dict.fromkeys(query.stems))
        weights = {stem: self.idf(stem) for stem in asked}
        total = sum(weights.values()) or 1.0
        common = [stem for stem in asked if stem in item.place]
        missing = [weights[stem] for stem in asked if stem not in item.place]
        gained = sum(weights[stem] for stem in common)
        item_weights = {stem: self.idf(stem) for stem in item.place}
        item_total = sum(item_weights.values()) or 1.0
        places = [item.place[stem] for stem in common]
        n, m = len(query.stems), len(item.stems)
        near = {stem: nearest(stem, item.stems) for stem in asked}
        bm25, best = self._bm25(common, asked, weights, item)
        last = query.stems[-1] if n else ""
        typed = {stem: self.idf(stem) for stem in query.typed}
        return [
            n,
            m,
            len(query.line),
            len(item.line),
            len(query.numbers),
            len(item.numbers),
            query.changed,
            len(common),
            share(len(common), len(asked)),
            gained / total,
            share(sum(w for s, w in typed.items() if s in item.place), sum(typed.values())),
            sum(item_weights[stem] for stem in common) / item_total,
            share(len(common), len(asked) + len(item.place) - len(common)),
            bm25,
            share(bm25, best),
            sum(self._query_idf(stem, own) for stem in common),
            share(len(query.pairs & item.pairs), len(query.pairs)),
            longest_run(query.stems, item.stems) / max(n, 1),
            share(len(query.letters & item.letters), len(query.letters)),
            share(len(query.letters & item.letters), len(query.letters | item.letters)),
            sum(weights[stem] * near[stem] for stem in asked) / total,
            min(near.values(), default=math.nan),
            float(last in item.place) if n else math.nan,
            near.get(last, math.nan),
            1.0 - abs(item.head - 1 - item.place[last]) / m if last in item.place else 0.0,
            float(query.stems[0] in item.place) if n else math.nan,
            float(item.stems[0] in query.place) if m else math.nan,
            sum(weights[s] for s in common if item.place[s] < item.head) / total,
            min(places) / m if places else math.nan,
            max(places) / m if places else math.nan,
            max(missing, default=0.0),
            sum(missing),
            total / max(len(asked), 1),
            max(weights.values(), default=math.nan),
            min(weights.values(), default=math.nan),
            sum(stem not in self.frequency for stem in asked),
            item_total / max(len(item.place), 1),
            share(len(query.numbers & item.numbers), len(query.numbers)),
            share(len(query.sizes & item.sizes), len(query.sizes)),
            fuzz.ratio(query.line, item.line),
            fuzz.partial_ratio(query.line, item.line),
            fuzz.token_sort_ratio(query.line, item.line),
            fuzz.token_set_ratio(query.line, item.line),
            JaroWinkler.similarity(query.line, item.line),
        ]

    def _bm25(
        self, common: list[str], asked: list[str], weights: Mapping[str, float], item: Said
    ) -> tuple[float, float]:
        """BM25 of the item for the query, and of an item that were the query's words."""
        norm = K1 * (1 - B + B * len(item.stems) / self.mean_length)
        ideal = K1 * (1 - B + B * len(asked) / self.mean_length)
        count = Counter(item.stems)
        found = sum(weights[s] * count[s] * (K1 + 1) / (count[s] + norm) for s in common)
        return found, sum(weights[s] * (K1 + 1) / (1 + ideal) for s in asked)

    def _cosines(self, pairs: Pairs, lines: Sequence[str]) -> Float32:
        """Cosines of a pair, and how they look among those of the crowd: float32[n, 5]."""
        assert self.encode is not None and self.crowd is not None
        right = self.encode(pairs.items)
        typed, left = self.encode(pairs.queries), self.encode(lines)
        found = np.empty((len(pairs), 5), dtype=np.float32)
        found[:, 0] = np.einsum("nd,nd->n", left[pairs.query], right[pairs.item])
        found[:, 1] = np.einsum("nd,nd->n", typed[pairs.query], right[pairs.item])
        order = np.argsort(pairs.query, kind="stable")
        bounds = np.searchsorted(pairs.query[order], np.arange(len(pairs.queries) + 1))
        near = min(10, len(self.crowd))
        for start in range(0, len(pairs.queries), 256):
            several = left[start : start + 256] @ self.crowd.T
            top = np.argpartition(-several, near - 1, axis=1)[:, :near]
            for at, cosines in enumerate(several):
                rows = order[bounds[start + at] : bounds[start + at + 1]]
                own = found[rows, 0]
                found[rows, 2] = (cosines[None, :] > own[:, None] + TIE).mean(1)
                found[rows, 3] = own - cosines[top[at]].mean()
                found[rows, 4] = right[pairs.item[rows]] @ self.crowd[top[at]].mean(0)
        return found

    def save(self, folder: Path) -> None:
        """Write into an existing folder what was learned, but not `encode`."""
        content = {
            "language": self.language,
            "documents": self.documents,
            "frequency": self.frequency,
            "query_frequency": self.query_frequency,
            "n_queries": self.n_queries,
            "mean_length": self.mean_length,
            "spelling": self.spelling.counts,
            "asked": sorted(self.asked),
            "terms": {kind: each.terms for kind, each in self.factors.items()},
        }
        text = json.dumps(content, ensure_ascii=False)
        (folder / "texts.json").write_text(text + "\n", encoding="utf-8")
        arrays: dict[str, npt.NDArray[Any]] = {}
        if self.crowd is not None:
            arrays["crowd"] = np.ascontiguousarray(self.crowd)
        for kind, each in self.factors.items():
            arrays |= {f"{kind}_idf": each.idf, f"{kind}_turn": np.ascontiguousarray(each.turn)}
        save_file(arrays, folder / "texts.safetensors")

    @classmethod
    def load(cls, folder: Path, encode: Encode | None) -> PairFeatures:
        """Read what `save` wrote; `encode` must be what it was."""
        content = json.loads((folder / "texts.json").read_text(encoding="utf-8"))
        arrays = load_file(folder / "texts.safetensors")
        factors = {
            kind: Factors(
                kind, content["language"], terms, arrays[f"{kind}_idf"], arrays[f"{kind}_turn"]
            )
            for kind, terms in content.pop("terms").items()
        }
        content["spelling"] = Spelling(content["spelling"])
        content["asked"] = frozenset(content["asked"])
        return cls(**content, factors=factors, encode=encode, crowd=arrays.get("crowd"))
