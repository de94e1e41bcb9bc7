"""Finds texts by their words: BM25, over distinct texts rather than items.

Shops list one product text many times (Complete Journey: 92,331 items, 20,736 texts), so the
index holds each text once and knows which text every item has. Fields weigh by how often their
words are counted (Robertson, Zaragoza & Taylor 2004, Simple BM25 extension to multiple weighted
fields); slips, stems and beginnings of words are forgiven by `spelling`.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from raysys.retrieval import segmentation
from raysys.retrieval.bm25 import BM25
from raysys.retrieval.fuse import Hits, best
from raysys.retrieval.spelling import Spelling

logging.getLogger("bm25s").setLevel(logging.WARNING)  # it asks for DEBUG when it is imported

_CJK = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"  # written without spaces: a sign is a word
_WORD = re.compile(rf"[{segmentation.HAN}]+|[{_CJK}]|[^\W_{_CJK}]+")
_MAX_WORDS = 64
"""Words of a query that count; more would only cost time."""
FIELD_WEIGHTS: Final = {"title": 3, "brand": 2, "category": 2, "subcategory": 2}
"""How often a word counts where it stands in such a field; elsewhere in the text once."""


def words(text: str) -> list[str]:
    """The words of a text, lower case, plurals cut: what texts and queries are matched by.

    Of Chinese text its words and its signs, see `segmentation.search_words`; of Japanese and Korean
    its signs.

    >>> words("Ice CREAMS, 2% milk-boxes & berries")
    ['ice', 'cream', '2', 'milk', 'boxe', 'berry']
    """
    found = _WORD.findall(text.lower())
    if not segmentation.RUN.search(text):
        return [_singular(word) for word in found]
    cut = list if segmentation.KANA.search(text) else segmentation.search_words
    return [
        part
        for word in found
        for part in (cut(word) if segmentation.RUN.match(word) else [_singular(word)])
    ]


def _singular(word: str) -> str:
    """The S stemmer (Harman 1991, How effective is suffixing?), and -ie as -y: cookies, cookie."""
    if len(word) > 2 and word.endswith("ie"):
        return word[:-2] + "y"
    if len(word) > 3 and word.endswith("ies") and not word.endswith(("eies", "aies")):
        return word[:-3] + "y"
    if len(word) > 3 and word.endswith("es") and not word.endswith(("aes", "ees", "oes")):
        return word[:-1]
    if len(word) > 2 and word.endswith("s") and not word.endswith(("us", "ss")):
        return word[:-1]
    return word


class LexicalIndex:
    """BM25 over distinct texts (Robertson & Zaragoza 2009; bm25s, Lù 2024).

    Args:
        index: None when no text holds a word.
        row_of_item: int32[n_items], the distinct text that each item has.
    """

    def __init__(self, index: Any | None, row_of_item: npt.NDArray[np.int32]) -> None:
        self._index = index
        self.row_of_item = row_of_item

    @classmethod
    def build(
        cls, texts: Sequence[str], fields: Mapping[str, Sequence[str | None]] | None = None
    ) -> LexicalIndex:
        """Index the texts of all items, in item order.

        Args:
            texts: str[n_items].
            fields: parts of these texts by name, str[n_items] each, which weigh as
                `FIELD_WEIGHTS` says; of items of one text the first one's count.

        Raises:
            KeyError: a field without a weight.
        """
        rows: dict[str, int] = {}
        first: list[int] = []
        for number, text in enumerate(texts):
            if rows.setdefault(text, len(rows)) == len(first):
                first.append(number)
        row_of_item = np.fromiter((rows[text] for text in texts), np.int32, len(texts))
        tokens = [words(text) for text in rows]
        for name, values in (fields or {}).items():
            more = FIELD_WEIGHTS[name] - 1
            for row, number in enumerate(first):
                tokens[row] += words(values[number] or "") * more
        if not any(tokens):
            return cls(None, row_of_item)
        # b is low: short texts here are terse entries, not better answers
        index = BM25(k1=1.2, b=0.4)
        index.index(tokens, show_progress=False)
        return cls(index, row_of_item)

    @cached_property
    def spelling(self) -> Spelling:
        """What words of a query may mean here; made when first asked for."""
        assert self._index is not None
        return Spelling(self._index.vocab_dict, np.diff(self._index.scores["indptr"]))

    def find(self, query: str, limit: int, rows: npt.NDArray[np.bool_] | None = None) -> Hits:
        """Rows of the best texts that share a word with the query; none for unknown words.

        Args:
            query: free text.
            limit: most rows.
            rows: bool[m], the only rows that may be found; None: all.
        """
        scores = self.scores(query)
        if scores is None:
            return Hits.none()
        found = np.flatnonzero(scores > 0 if rows is None else (scores > 0) & rows)
        return best(found.astype(np.int32), scores[found], limit)

    def scores(self, query: str) -> npt.NDArray[np.float32] | None:
        """BM25 of every row, float32[m], 0 without a common word; None when no word means any."""
        if self._index is None:
            return None
        total: npt.NDArray[np.float32] | None = None
        for meanings in self._meanings(query):
            if total is None:
                total = np.zeros(int(self._index.scores["num_docs"]), np.float32)
            if len(meanings) == 1:
                number, weight = meanings[0]
                rows, scores = self._postings(number)
                total[rows] += weight * scores
                continue
            of_best = np.zeros_like(total)
            for number, weight in meanings:
                rows, scores = self._postings(number)
                of_best[rows] = np.maximum(of_best[rows], weight * scores)
            total += of_best
        return total

    def understood(self, query: str) -> dict[str, list[str]]:
        """Words of the query that are not known -> the known ones they are taken for."""
        if self._index is None:
            return {}
        return {
            word: self.spelling.words_of(self.spelling.meant(word))
            for word in dict.fromkeys(words(query)[:_MAX_WORDS])
            if word not in self._index.vocab_dict
        }

    def _meanings(self, query: str) -> Iterator[tuple[tuple[int, float], ...]]:
        """Groups of words, each of a word of the query that means any."""
        for word in words(query)[:_MAX_WORDS]:
            yield from self.spelling.meant(word)

    def _postings(self, number: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
        """Rows that hold a word, each once, and its BM25 in them."""
        assert self._index is not None
        held = self._index.scores
        start, end = held["indptr"][number], held["indptr"][number + 1]
        return held["indices"][start:end], held["data"][start:end]

    def save(self, folder: Path) -> None:
        """Write into an existing folder: arrays as .npy, vocabulary as JSON."""
        np.save(folder / "text_of_item.npy", self.row_of_item, allow_pickle=False)
        if self._index is not None:
            self._index.save(folder / "bm25", show_progress=False)

    @classmethod
    def load(cls, folder: Path) -> LexicalIndex:
        """Read what `save` wrote."""
        row_of_item = np.load(folder / "text_of_item.npy", allow_pickle=False)
        index = None
        if (folder / "bm25").is_dir():
            index = BM25.load(folder / "bm25", allow_pickle=False, show_progress=False)
            segmentation.warm(index.vocab_dict)
        found = cls(index, row_of_item)
        if index is not None:
            _ = found.spelling  # now, not at the first query
        return found
