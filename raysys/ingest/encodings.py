"""Text that was once decoded wrongly, such as `cafÃ©`, and what it said before."""

from __future__ import annotations

import re
from typing import Final

import ftfy
import polars as pl

# What UTF-8's first bytes read as in latin-1 and its relatives, and what follows them there.
_SUSPICIOUS: Final = (
    r"[\u00c2-\u00df\u00e2\u00e3\u00ef\u00f0][\u0080-\u00bf\u0152\u0153\u0160\u0161\u0178\u017d\u017e"
    r"\u0192\u02c6\u02dc\u2013-\u2022\u2026\u2030\u2039\u203a\u20ac\u2122]"
)
_PLAIN: Final = re.compile(_SUSPICIOUS)


def is_suspicious(text: pl.Expr) -> pl.Expr:
    """Whether a text may be mojibake: cheap, and true more often than it is."""
    return text.str.contains(_SUSPICIOUS)


def mended(text: pl.Series) -> pl.Series:
    """Texts with mojibake undone by `ftfy.fix_encoding`; others as they are.

    Only what looks suspicious is tried, each distinct text once.

    >>> mended(pl.Series(["cafÃ©", "café", "Ångström", None])).to_list()
    ['café', 'café', 'Ångström', None]
    """
    odd = text.filter(text.str.contains(_SUSPICIOUS)).unique()
    if odd.len() == 0:
        return text
    better = {old: ftfy.fix_encoding(old) for old in odd}
    return text.replace({old: new for old, new in better.items() if old != new})
