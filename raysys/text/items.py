"""Items as text: which columns, how much of them, and each distinct text only once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from raysys.catalogue import Catalogue
from raysys.errors import UserError

COLUMNS = ("title", "department", "category", "subcategory", "brand", "manufacturer", "size",
           "description")  # fmt: skip
MAX_CHARACTERS = 400
"""Of one item's text: a transformer reads far less, and a broken feed may hold a megabyte."""

NO_TEXT = "unknown item"
"""What an item without any text is called, since an empty line has no vector."""


@dataclass(frozen=True)
class ItemTexts:
    """The distinct texts of a catalogue and which of them each item has.

    Shops repeat themselves: of 92,331 items of the Complete Journey 20,693 texts are distinct,
    so whoever encodes texts encodes `distinct` and spreads the outcome by `codes`.

    Attributes:
        distinct: sorted texts, no two the same.
        codes: int32[n_items], position of each item's text in `distinct`.
    """

    distinct: tuple[str, ...]
    codes: npt.NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.distinct)

    @cached_property
    def counts(self) -> npt.NDArray[np.int64]:
        """How many items have each text: int64[len(distinct)]."""
        return np.bincount(self.codes, minlength=len(self.distinct))


def item_texts(catalogue: Catalogue, columns: Sequence[str] = ()) -> ItemTexts:
    """Each item as one lower-case line.

    Args:
        catalogue: the items.
        columns: which columns, in the order in which they are read; empty: `Catalogue.texts`,
            which has nearly all of them.

    Raises:
        UserError: a column that items do not have, or that is not text.

    An item without any text is the text `NO_TEXT`.
    """
    for name in columns:
        if name not in COLUMNS:
            raise UserError(
                f"no text column {name!r} of items", mend=f"choose among {', '.join(COLUMNS)}"
            )
    if columns:
        made: dict[tuple[str | None, ...], str] = {}  # what many share is joined once
        parts = zip(*(catalogue.table[name].to_pylist() for name in columns), strict=True)
        lines = [
            made[row] if row in made else made.setdefault(row, join_parts(row)) for row in parts
        ]
    else:
        lines = [line[:MAX_CHARACTERS] for line in catalogue.texts]
    lines = [line or NO_TEXT for line in lines]
    distinct = sorted(set(lines))
    place = {line: at for at, line in enumerate(distinct)}
    return ItemTexts(tuple(distinct), np.array([place[line] for line in lines], dtype=np.int32))


def join_parts(parts: Sequence[str | None]) -> str:
    """Parts in lower case, joined by commas, without repeating what an earlier part says.

    >>> join_parts(["Apple  Sauce, 50 oz", "APPLE SAUCE", None, "Private"])
    'apple sauce, 50 oz, private'
    """
    line: list[str] = []
    for part in parts:
        text = " ".join((part or "")[:MAX_CHARACTERS].lower().split())
        if text and not any(text in earlier for earlier in line):
            line.append(text)
    return ", ".join(line)[:MAX_CHARACTERS]
