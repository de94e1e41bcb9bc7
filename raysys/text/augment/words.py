"""Texts as words, all in one column, and back.

A word is what stands between spaces. Chinese writes none and is cut as search cuts it
(`retrieval.segmentation`); in Japanese, Thai, and Chinese without jieba a word is one character, so
that dropout and swap mean something there too. A text comes back as it was,
down to its spaces and punctuation, except for what was changed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt
import polars as pl

from raysys.retrieval import segmentation

_SOLID = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}"
_WORD = rf"\s*(?:[{segmentation.HAN}]+|[{_SOLID}]|[^\s{_SOLID}]+)"
_HAN = rf"^[{segmentation.HAN}]{{2,}}$"
_IDENTIFIER = r"[\p{N}@_/\\#]"
"""Whoever has one of these may be a model number, a size, an address: no letter of it is moved."""


@dataclass(frozen=True)
class Words:
    """The words of n texts, one text after the other.

    Attributes:
        row: int64[t], the text that each word is of, ascending.
        gap: t texts, the spaces before each word.
        word: t texts.
        n_texts: n.
    """

    row: npt.NDArray[np.int64]
    gap: pl.Series
    word: pl.Series
    n_texts: int

    @classmethod
    def of(cls, texts: pl.Series) -> Words:
        """Cut texts; null is an empty text."""
        pieces = texts.cast(pl.String).fill_null("").str.extract_all(_WORD)
        lengths = pieces.list.len().to_numpy().astype(np.int64)
        flat = pieces.filter(pl.Series(lengths > 0)).explode().alias("piece")
        word = flat.str.strip_chars_start().alias("word")
        whole, tail = flat.str.len_chars(), word.str.len_chars()
        gap = pl.select(pl.lit(flat).str.slice(0, whole - tail)).to_series().alias("gap")
        row = np.repeat(np.arange(len(texts)), lengths)
        return _segmented(cls(row, gap, word, len(texts)), texts)

    def __len__(self) -> int:
        return len(self.row)

    @cached_property
    def place(self) -> npt.NDArray[np.int64]:
        """Of each word within its text, from 0: int64[t]."""
        counts = np.bincount(self.row, minlength=self.n_texts)
        return np.arange(len(self)) - (np.cumsum(counts) - counts)[self.row]

    @cached_property
    def identifier(self) -> npt.NDArray[np.bool_]:
        """Whether a word may be an id, a number, a size or an address: bool[t]."""
        return self.word.str.contains(_IDENTIFIER).to_numpy()

    def with_words(self, word: pl.Series) -> Words:
        """The same with other words in the same places."""
        return replace(self, word=word.alias("word"))

    def kept(self, which: npt.NDArray[np.bool_]) -> Words:
        """Only some of the words."""
        chosen = pl.Series(which)
        return Words(
            self.row[which], self.gap.filter(chosen), self.word.filter(chosen), self.n_texts
        )

    def texts(self) -> pl.Series:
        """Put together again: n texts.

        Words that a character stood between, and that are side by side now, get a space: `5折3天`
        without its 折 must not become `53天`.
        """
        frame = pl.DataFrame({"row": self.row, "gap": self.gap, "word": self.word})
        spaced = ~pl.col("word").str.contains(rf"^[{_SOLID}]+$")
        joint = spaced & spaced.shift(1) & (pl.col("row") == pl.col("row").shift(1))
        gap = pl.when(joint & (pl.col("gap") == "")).then(pl.lit(" ")).otherwise(pl.col("gap"))
        frame = frame.select("row", piece=gap + pl.col("word"))
        joined = frame.group_by("row", maintain_order=True).agg(pl.col("piece").str.join(""))
        found = pl.DataFrame({"row": np.arange(self.n_texts)}).join(
            joined, on="row", how="left", maintain_order="left"
        )
        return found["piece"].fill_null("").str.strip_chars().alias("text")


def _segmented(words: Words, texts: pl.Series) -> Words:
    """The same with runs of Chinese signs cut into words."""
    solid = words.word.str.contains(_HAN).to_numpy()
    if not solid.any():
        return words
    japanese = texts.cast(pl.String).fill_null("").str.contains(segmentation.KANA.pattern)
    chinese = solid & ~japanese.to_numpy()[words.row]
    known = words.word.filter(pl.Series(chinese)).unique(maintain_order=True)
    parts = {run: segmentation.chinese_words(run) for run in known}
    cut = [
        parts[word] if in_chinese else list(word) if is_solid else [word]
        for word, is_solid, in_chinese in zip(words.word, solid, chinese, strict=True)
    ]
    counts = np.array([len(each) for each in cut])
    first = np.cumsum(counts) - counts
    gap = np.full(counts.sum(), "", dtype=object)
    gap[first] = words.gap.to_list()
    return Words(
        np.repeat(words.row, counts),
        pl.Series("gap", gap, dtype=pl.String),
        pl.Series("word", [part for each in cut for part in each], dtype=pl.String),
        words.n_texts,
    )
