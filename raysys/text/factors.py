"""Texts as a few factors of their words' and letters' weights: latent semantic analysis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from raysys.text.pairs import Float32
from raysys.text.shop_words import plain_words, stems


@dataclass
class Factors:
    """Texts as unit vectors of the factors of TF-IDF (LSA: Deerwester et al. 1990).

    Attributes:
        kind: `words` (stems and their pairs) or `letters` (3- and 4-grams within words).
        language: of the stems.
        terms: that count, in column order.
        idf: float64[len(terms)].
        turn: float32[len(terms), d].
    """

    kind: str
    language: str
    terms: list[str]
    idf: npt.NDArray[np.float64]
    turn: Float32

    @classmethod
    def learn(
        cls, kind: str, texts: Sequence[str], factors: int, language: str, seed: int
    ) -> Factors | None:
        """Learn from texts; None where they have too few terms for so many factors."""
        from sklearn.decomposition import TruncatedSVD

        vectoriser = _vectoriser(kind, language, min_df=3, max_features=20_000)
        try:
            matrix = vectoriser.fit_transform(texts)
        except ValueError:  # nothing is said three times
            return None
        if matrix.shape[1] <= factors or matrix.shape[0] <= factors:
            return None
        found = TruncatedSVD(factors, n_iter=4, random_state=seed).fit(matrix)
        terms = vectoriser.get_feature_names_out().tolist()
        return cls(kind, language, terms, vectoriser.idf_, found.components_.T.astype(np.float32))

    def of(self, texts: Sequence[str]) -> Float32:
        """Unit vectors float32[n, d]; zeros for texts of unknown terms."""
        vectoriser = _vectoriser(self.kind, self.language, vocabulary=self.terms)
        vectoriser.idf_ = self.idf
        vectors = np.asarray(vectoriser.transform(texts) @ self.turn, dtype=np.float32)
        norm = np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors / np.maximum(norm, 1e-12)


def _vectoriser(kind: str, language: str, **more: Any) -> Any:
    from sklearn.feature_extraction.text import TfidfVectorizer

    if kind == "words":
        return TfidfVectorizer(
            tokenizer=lambda text: stems(plain_words(text), language), token_pattern=None,
            lowercase=False, ngram_range=(1, 2), sublinear_tf=True, dtype=np.float64, **more,
        )  # fmt: skip
    return TfidfVectorizer(
        preprocessor=lambda text: " ".join(plain_words(text)), analyzer="char_wb",
        ngram_range=(3, 4), sublinear_tf=True, dtype=np.float64, **more,
    )  # fmt: skip
