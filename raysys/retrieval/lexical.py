"""Finds texts by their words: BM25, over distinct texts rather than items.

Shops list one product text many times (Complete Journey: 92,331 items, 20,736 texts), so the
index holds each text once and knows which text every item has.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path

import bm25s
import numpy as np
import numpy.typing as npt

from raysys.retrieval import segmentation
from raysys.retrieval.fuse import Hits, best

logging.getLogger("bm25s").setLevel(logging.WARNING)  # it asks for DEBUG when it is imported

_CJK = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"  # written without spaces: a sign is a word
_WORD = re.compile(rf"[{segmentation.HAN}]+|[{_CJK}]|[^\W_{_CJK}]+")
_MAX_WORDS = 64
"""Words of a query that count; more would only cost time."""


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

    def __init__(self, index: bm25s.BM25 | None, row_of_item: npt.NDArray[np.int32]) -> None:
        self._index = index
        self.row_of_item = row_of_item

    @classmethod
    def build(cls, texts: Sequence[str]) -> LexicalIndex:
        """Index the texts of all items, in item order."""
        rows: dict[str, int] = {}
        row_of_item = np.fromiter(
            (rows.setdefault(text, len(rows)) for text in texts), np.int32, len(texts)
        )
        tokens = [words(text) for text in rows]
        if not any(tokens):
            return cls(None, row_of_item)
        # b is low: short texts here are terse entries, not better answers
        index = bm25s.BM25(k1=1.2, b=0.4)
        index.index(tokens, show_progress=False)
        return cls(index, row_of_item)

    def find(self, query: str, limit: int) -> Hits:
        """Rows of the best texts that share a word with the query; none for unknown words."""
        scores = self.scores(query)
        if scores is None:
            return Hits.none()
        found = np.flatnonzero(scores > 0)
        return best(found.astype(np.int32), scores[found], limit)

    def scores(self, query: str) -> npt.NDArray[np.float32] | None:
        """BM25 of every row, 0 without a common word; None when no word is known."""
        if self._index is None:
            return None
        known = self._index.vocab_dict
        ids = [known[word] for word in words(query)[:_MAX_WORDS] if word in known]
        if not ids:
            return None
        scores: npt.NDArray[np.float32] = self._index.get_scores_from_ids(ids)
        return scores

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
            index = bm25s.BM25.load(folder / "bm25", allow_pickle=False, show_progress=False)
            segmentation.warm(index.vocab_dict)
        return cls(index, row_of_item)
