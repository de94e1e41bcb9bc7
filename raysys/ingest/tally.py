"""What became of a table's rows: counts that add up, and examples of what was wrong."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Final

EXAMPLES: Final = 5
"""Examples kept of each rule."""

_SHOWN: Final = 300  # characters of an example


@dataclass
class Tally:
    """Counts of one table (events, items or users).

    `rows_in == rows_out + quarantined`, always; a mended row is among `rows_out`,
    an added one among neither.
    """

    rows_in: int = 0
    rows_out: int = 0
    reasons: Counter[str] = field(default_factory=Counter)  # quarantined, by rule
    mended: Counter[str] = field(default_factory=Counter)  # by rule
    added: Counter[str] = field(default_factory=Counter)  # rows that come from elsewhere, by rule
    examples: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    @property
    def quarantined(self) -> int:
        """Rows that did not get through."""
        return sum(self.reasons.values())

    def example(self, rule: str, source: str, row: int, raw: str) -> None:
        """Keep one example of a rule, unless there are enough."""
        kept = self.examples.setdefault(rule, [])
        if len(kept) < EXAMPLES:
            shown = raw if len(raw) <= _SHOWN else raw[: _SHOWN - 1] + "…"
            kept.append({"source": source, "row": row, "raw": shown})

    def add(self, other: Tally) -> None:
        """Count another piece of the same table too."""
        self.rows_in += other.rows_in
        self.rows_out += other.rows_out
        self.reasons.update(other.reasons)
        self.mended.update(other.mended)
        self.added.update(other.added)
        for rule, examples in other.examples.items():
            for one in examples:
                self.example(rule, one["source"], one["row"], one["raw"])

    def to_dict(self) -> dict[str, Any]:
        """As JSON can say it."""
        return {
            "rows_in": self.rows_in,
            "rows_out": self.rows_out,
            "reasons": dict(self.reasons),
            "mended": dict(self.mended),
            "added": dict(self.added),
            "examples": self.examples,
        }

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Tally:
        """What `to_dict` said."""
        return cls(
            content["rows_in"],
            content["rows_out"],
            Counter(content["reasons"]),
            Counter(content["mended"]),
            Counter(content["added"]),
            content["examples"],
        )
