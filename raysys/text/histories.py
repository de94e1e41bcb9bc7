"""Histories as text: what the user last bought, newest first."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from raysys.text.items import ItemTexts

PAD = -1


def history_codes(
    history: Sequence[npt.NDArray[np.int32]], texts: ItemTexts, length: int
) -> npt.NDArray[np.int32]:
    """Codes of the texts of the last `length` items of each history: int32[r, length].

    Newest first. Two items with one text (package sizes of one thing, say) both count: they say
    that the user buys a lot of it. Rows are filled up with -1; items that the catalogue does not
    have (negative or beyond it) are passed over.
    """
    codes = np.full((len(history), length), PAD, dtype=np.int32)
    n_items = len(texts.codes)
    for row, items in enumerate(history):
        known = items[(items >= 0) & (items < n_items)][:length]
        codes[row, : len(known)] = texts.codes[known]
    return codes


def history_text(history: npt.NDArray[np.int32], texts: ItemTexts, length: int) -> str:
    """A history as one readable line, newest first, each text once; empty for somebody new.

    For people (reports, explanations); models read the texts of `history_codes` one by one.
    """
    codes = history_codes([history], texts, length)[0]
    return "; ".join(texts.distinct[code] for code in dict.fromkeys(codes.tolist()) if code != PAD)
