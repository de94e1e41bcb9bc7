"""What a linear model reads of a text: how often words, letters and runs of them stand in it.

Where words stand between spaces, words and pairs of words and runs of letters within words; in
scripts that write none (Chinese, Japanese, Thai) runs of characters, and the words that jieba
finds, where it is installed.
"""

from __future__ import annotations

import importlib.util
import logging
import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from raysys.errors import UserError, missing_extra
from raysys.retrieval.segmentation import cutter

Kind = Literal["words", "letters", "characters", "jieba_words"]
Language = Literal["spaced", "solid"]

_SOLID = re.compile(r"[\u0e00-\u0eff\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]")
_WORD = re.compile(r"\w+|[^\w\s]")
SAMPLE = 2000

VIEWS: dict[Language, tuple[tuple[Kind, int, int], ...]] = {
    "spaced": (("words", 1, 2), ("letters", 2, 5)),
    "solid": (("characters", 1, 3), ("jieba_words", 1, 2)),
}
"""What is counted by default: kind, shortest and longest run."""


def plain(text: str) -> str:
    """Lower case, compatibility forms as one (full-width letters and digits), single spaces."""
    return " ".join(unicodedata.normalize("NFKC", text).lower().split())


def language_of(texts: Sequence[str]) -> Language:
    """Whether most letters of (a sample of) the texts are of a script without spaces."""
    step = max(1, len(texts) // SAMPLE)
    joined = "".join(text[:1000] for text in texts[::step])
    solid = len(_SOLID.findall(joined))
    return "solid" if solid > 0.5 * sum(map(str.isalpha, joined)) else "spaced"


@dataclass(frozen=True)
class View:
    """One kind of terms.

    Attributes:
        kind: of a term: word, run of letters within a word, run of any characters, jieba's word.
        low: shortest run.
        high: longest run.
        terms: f of them, distinct, in the order of the columns.
        idf: float32[f], how much a term weighs: the rarer, the more.
    """

    kind: Kind
    low: int
    high: int
    terms: tuple[str, ...]
    idf: npt.NDArray[np.float32]

    @cached_property
    def _counts(self) -> Any:
        vectoriser = _vectoriser(self.kind, self.low, self.high)
        vectoriser.set_params(vocabulary={term: at for at, term in enumerate(self.terms)})
        vectoriser._validate_vocabulary()  # else the first texts do it, in several threads at once
        return vectoriser

    @classmethod
    def fit(
        cls, kind: Kind, low: int, high: int, texts: Sequence[str], *, least: int, most: int
    ) -> tuple[View, Any] | None:
        """The terms of texts with their matrix, see `matrix`; None where there are none.

        Args:
            kind: of terms.
            low: shortest run.
            high: longest run.
            texts: as `plain` gives them.
            least: texts that a term must stand in.
            most: terms, the most frequent; ties go to the first in the alphabet.
        """
        vectoriser = _vectoriser(kind, low, high)
        vectoriser.set_params(min_df=min(least, len(texts)), max_features=most)
        try:
            counts = vectoriser.fit_transform(texts)
        except ValueError:  # scikit-learn: "empty vocabulary", "no terms remain"
            return None
        frequency = np.bincount(counts.indices, minlength=counts.shape[1])
        idf = (np.log((1 + len(texts)) / (1 + frequency)) + 1).astype(np.float32)
        view = cls(kind, low, high, tuple(vectoriser.get_feature_names_out()), idf)
        return view, view._weighed(counts)

    def matrix(self, texts: Sequence[str]) -> Any:
        """Sparse rows float32[n, f], `(1 + log count) · idf` with length one, or zero."""
        return self._weighed(self._counts.transform(texts))

    def _weighed(self, counts: Any) -> Any:
        from sklearn.preprocessing import normalize

        rows = counts.tocsr()
        rows.data = (1 + np.log(rows.data)) * self.idf[rows.indices]
        return normalize(rows, copy=False)


def fit_views(
    texts: Sequence[str],
    wanted: Sequence[tuple[Kind, int, int]],
    *,
    least: int,
    most: int,
) -> tuple[tuple[View, ...], Any]:
    """Views of training texts, and their matrices side by side: float32[n, sum of f].

    jieba's words are left out where it is not installed.

    Raises:
        UserError: no text has a term.
    """
    import scipy.sparse as sparse

    views, parts = [], []
    for kind, low, high in wanted:
        if kind == "jieba_words" and importlib.util.find_spec("jieba") is None:
            logging.getLogger("raysys").warning(
                "jieba is not installed: Chinese is read by characters alone"
            )
            continue
        fitted = View.fit(kind, low, high, texts, least=least, most=most)
        fitted = fitted or View.fit(kind, low, high, texts, least=1, most=most)
        if fitted is not None:
            views.append(fitted[0])
            parts.append(fitted[1])
    if not views:
        raise UserError(
            "no training text has a word",
            where="column text of split train",
            mend="check that the column holds the texts and that their encoding was read well",
        )
    return tuple(views), sparse.hstack(parts, format="csr")


def matrix(views: Sequence[View], texts: Sequence[str]) -> Any:
    """All views of texts side by side: sparse float32[n, sum of f]."""
    import scipy.sparse as sparse

    lines = [plain(text) for text in texts]
    return sparse.hstack([view.matrix(lines) for view in views], format="csr")


def _vectoriser(kind: Kind, low: int, high: int) -> Any:
    from sklearn.feature_extraction.text import CountVectorizer

    shared: dict[str, Any] = {"lowercase": False, "dtype": np.float32, "ngram_range": (low, high)}
    if kind == "letters":
        return CountVectorizer(analyzer="char_wb", **shared)
    if kind == "characters":
        return CountVectorizer(analyzer="char", **shared)
    cut = _WORD.findall if kind == "words" else _jieba()
    return CountVectorizer(tokenizer=cut, token_pattern=None, **shared)


def _jieba() -> Callable[[str], list[str]]:
    """What cuts Chinese into words."""
    words = cutter()
    if words is None:
        raise missing_extra("jieba", "chinese")

    def cut(text: str) -> list[str]:
        return [word for word in words(text) if not word.isspace()]

    return cut
