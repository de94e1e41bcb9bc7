"""What a unit looks like, as numbers of hashed features: letters, case, shape, known values.

A tokenizer that lowers case or an encoder that never saw a shop's model numbers loses what these
keep. Feature hashing: Weinberger et al. (ICML 2009); the features are those of taggers before
transformers (Ratinov and Roth, CoNLL 2009).
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from functools import lru_cache

from raysys.text.gazetteer import Match
from raysys.text.units import Units

BUCKETS = 1 << 14
LONGEST = 24
"""Characters of a unit that are looked at."""


def bucket(feature: str) -> int:
    """The number of a feature: 1 … BUCKETS - 1, the same everywhere; 0 is padding."""
    return 1 + zlib.crc32(feature.encode("utf-8", "surrogatepass")) % (BUCKETS - 1)


@lru_cache(maxsize=1 << 16)
def unit_features(word: str, gap: bool) -> tuple[int, ...]:
    """Of a unit by itself.

    Args:
        word: the unit.
        gap: whether white space stands before it.
    """
    word = word[:LONGEST]
    lower = word.lower()
    shape = re.sub(r"[^\W\d_]", "a", re.sub(r"\d", "0", word))
    cased = "".join("A" if c.isupper() else s for c, s in zip(word, shape, strict=False))
    short = re.sub(r"(.)\1+", r"\1", cased)
    found = [f"w={lower}", f"case={short}", f"shape={cased}", f"gap={gap}"]
    found += [f"gap={gap} {short}", f"length={min(len(word), 8)} {short[:1]}"]
    found += [f"begin={lower[:n]}" for n in (1, 2, 3, 4) if n < len(lower)]
    found += [f"end={lower[-n:]}" for n in (1, 2, 3, 4) if n < len(lower)]
    edged = f"<{lower}>"
    found += [f"gram={edged[at : at + 3]}" for at in range(len(edged) - 2)]
    return tuple(sorted({bucket(each) for each in found}))


def features(units: Units, matches: Sequence[Match]) -> list[list[int]]:
    """Numbers of the features of every unit of a text.

    Args:
        units: of the text.
        matches: known values in it.
    """
    n = len(units)
    rows: list[list[int]] = []
    for at, ((start, end), word) in enumerate(zip(units.pieces, units.words, strict=True)):
        gap = start == 0 or units.text[start - 1].isspace()
        row = list(unit_features(word, gap))
        row.append(bucket(f"place={min(at, 8)}"))
        row.append(bucket(f"from the end={min(n - 1 - at, 3)}"))
        row.append(bucket(f"open={_open(units.text, start, end)}"))
        rows.append(row)
    for match in matches:
        trust = min(int(match.trust * 4), 3)
        for at in range(match.first, match.last):
            part = ("B" if at == match.first else "I") + ("E" if at == match.last - 1 else "")
            rows[at].append(bucket(f"{match.way} {part} {match.label}"))
            rows[at].append(bucket(f"{match.way} {part} {match.label} {trust}"))
    return rows


def _open(text: str, start: int, end: int) -> bool:
    """Whether a bracket before the unit is still open."""
    near = max(0, start - 60)
    return any(
        text.rfind(a, near, start) > text.rfind(b, near, start) for a, b in ("()", "[]", "{}")
    )
