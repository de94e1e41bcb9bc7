"""What became of a table's rows: counts that add up, and examples of what was wrong."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Final

EXAMPLES: Final = 5
"""Examples kept of each rule."""

_SHOWN: Final = 300  # characters of an example
_FILES: Final = 1000  # files that are named


@dataclass
class Tally:
    """Counts of one table (events, items or users).

    `rows_in == rows_out + quarantined`, always; a kept or mended row is among `rows_out`,
    an added one among neither.
    """

    rows_in: int = 0
    rows_out: int = 0
    reasons: Counter[str] = field(default_factory=Counter)  # quarantined, by rule
    mended: Counter[str] = field(default_factory=Counter)  # by rule
    kept: Counter[str] = field(default_factory=Counter)  # with a fault, but as they are, by rule
    added: Counter[str] = field(default_factory=Counter)  # rows that come from elsewhere, by rule
    ignored: Counter[str] = field(default_factory=Counter)  # records that mean no row, by reason
    users: Counter[str] = field(default_factory=Counter)  # bots: users of a day, by signal
    lacking: Counter[str] = field(default_factory=Counter)  # files without a column, by column
    files: dict[str, str] = field(default_factory=dict)  # files at fault as a whole → rule
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
        for mine, theirs in zip(self._counters(), other._counters(), strict=True):
            mine.update(theirs)
        for label, rule in other.files.items():
            if len(self.files) < _FILES:
                self.files[label] = rule
        for rule, examples in other.examples.items():
            for one in examples:
                self.example(rule, one["source"], one["row"], one["raw"])

    def add_later(self, other: Tally) -> None:
        """Count a later look at rows that are counted already: what it takes out, goes out."""
        self.add(other)
        self.rows_in -= other.rows_in
        self.rows_out -= other.rows_out + other.quarantined

    def _counters(self) -> tuple[Counter[str], ...]:
        return (
            *(self.reasons, self.mended, self.kept, self.added),
            *(self.ignored, self.users, self.lacking),
        )

    def to_dict(self) -> dict[str, Any]:
        """As JSON can say it."""
        return {
            name: dict(value) if isinstance(value, Counter) else value
            for name, value in self.__dict__.items()
        }

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Tally:
        """What `to_dict` said."""
        tally = cls()
        for name, value in content.items():
            counter = isinstance(getattr(tally, name), Counter)
            setattr(tally, name, Counter(value) if counter else value)
        return tally
