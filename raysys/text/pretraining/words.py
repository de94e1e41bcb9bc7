"""Which tokens make a word: what is masked together, so that no half gives the other away."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from raysys.retrieval.segmentation import cutter

HAN = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")
"""Scripts whose words no space divides, and that jieba knows how to cut."""

Cut = Callable[[str], list[str]]


def segmenter() -> Cut | None:
    """What cuts Chinese into words; None where jieba is not installed: a character is a word."""
    return cutter()


def word_numbers(
    text: str,
    word_ids: Sequence[int | None],
    offsets: Sequence[tuple[int, int]],
    cut: Cut | None = None,
) -> npt.NDArray[np.int32]:
    """Number each token by its word, from 0 in order of appearance: int32[t].

    Args:
        text: as it was given to the tokenizer.
        word_ids: the tokenizer's word of each token; None: the token is a word by itself.
        offsets: characters of each token in `text`.
        cut: cuts Chinese into words (`segmenter`); None: by character.

    A token that begins with a Chinese character belongs to the word of that character, whatever
    the tokenizer says: some take a whole clause for one word.
    """
    keys: list[tuple[str, int]] = [
        ("alone", at) if word is None else ("word", word) for at, word in enumerate(word_ids)
    ]
    if HAN.search(text):
        ends: list[int] = []
        if cut is not None:
            for word in cut(text):
                ends.append((ends[-1] if ends else 0) + len(word))
        for at, (start, end) in enumerate(offsets):
            if start < end and HAN.match(text, start):
                keys[at] = ("han", bisect_right(ends, start) if ends else start)
    numbers: dict[tuple[str, int], int] = {}
    found = (numbers.setdefault(key, len(numbers)) for key in keys)
    return np.fromiter(found, np.int32, len(keys))
