"""CSV text as records, slowly and exactly: first lines, and what faster readers refuse."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Iterator
from typing import Final

DELIMITERS: Final = (",", "\t", ";", "|")
"""The usual ones."""


def records(text: str, delimiter: str, *, quoted: bool = True) -> Iterator[list[str]]:
    """The fields of each record, as Python reads them; a blank line is a record of none.

    Args:
        text: of whole lines.
        delimiter: one character.
        quoted: whether quotation marks enclose fields; else they are characters like others.
    """
    csv.field_size_limit(sys.maxsize)
    lines = io.StringIO(text, newline="")
    if quoted:
        return csv.reader(lines, delimiter=delimiter)
    return csv.reader(lines, delimiter=delimiter, quoting=csv.QUOTE_NONE)
