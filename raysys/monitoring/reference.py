"""How features, scores and outcomes were distributed when a bundle was trained.

One JSON file of the bundle, `monitoring/reference.json`: for each feature, each learner's score
and the ensemble's the bins and how many rows lay in each; label rates; what became of lists that
the log tells of. All of the validation fold: nobody's scores there are of a model that saw it, and
of what the training may know it lies nearest to the day the bundle is served. The rows are drawn,
equally many from each request, as replicas draw theirs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from raysys.errors import UserError
from raysys.features.drift import Cut
from raysys.monitoring.tally import Grid

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]
Kind = Literal["feature", "score"]
KINDS: Final[tuple[Kind, ...]] = ("feature", "score")

ENSEMBLE: Final = "ensemble"
ROWS: Final = 64
"""Candidates that are drawn of each request."""

_FILE: Final = Path("monitoring") / "reference.json"
_FORMAT: Final = 1


@dataclass(frozen=True)
class Variable:
    """One feature or score.

    Attributes:
        kind: feature or score.
        name: of the feature or learner; the ensemble's score is `ensemble`.
        cut: its bins.
        counts: rows in each.
    """

    kind: Kind
    name: str
    cut: Cut
    counts: tuple[int, ...]


@dataclass(frozen=True)
class Outcomes:
    """What became of lists that a log tells of.

    Attributes:
        lists: how many.
        seen: slots with an impression.
        done: event type → slots with such an event.
        errors: event type → standard error of done ÷ seen, between users.
    """

    lists: int
    seen: int
    done: Mapping[str, int]
    errors: Mapping[str, float]


@dataclass(frozen=True)
class Reference:
    """Distributions of the training.

    Attributes:
        surface: whose lists it is about.
        since, until: UTC ms, first and last request.
        requests, people, rows: what was counted.
        items: of the catalogue.
        variables: features, then scores.
        labels: `positive_rows`, share of the candidates with a label above 0;
            `positive_requests`, share of the requests with such a candidate.
        outcomes: by surface; empty where the log does not say which answer an event reacts to.
    """

    surface: str
    since: int
    until: int
    requests: int
    people: int
    rows: int
    items: int
    variables: tuple[Variable, ...]
    labels: Mapping[str, float] = field(default_factory=dict)
    outcomes: Mapping[str, Outcomes] = field(default_factory=dict)

    @cached_property
    def grid(self) -> Grid:
        """Bins of all variables."""
        return Grid([each.cut for each in self.variables])

    @cached_property
    def _numbers(self) -> dict[tuple[Kind, str], int]:
        return {(each.kind, each.name): at for at, each in enumerate(self.variables)}

    def which(self, kind: Kind, names: Sequence[str]) -> dict[str, int]:
        """Numbers of those variables that there are."""
        known = self._numbers
        return {name: known[kind, name] for name in names if (kind, name) in known}

    def save(self, folder: Path) -> None:
        """Write it into a bundle's folder."""
        content = {
            "format": _FORMAT,
            **{name: value for name, value in vars(self).items() if name in _PLAIN},
            "outcomes": {name: vars(each) for name, each in self.outcomes.items()},
            "variables": [
                {
                    "kind": each.kind,
                    "name": each.name,
                    "categorical": each.cut.categorical,
                    "ends": [float(end) for end in each.cut.ends],
                    "counts": list(each.counts),
                }
                for each in self.variables
            ],
        }
        path = folder / _FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Reference | None:
        """Of a bundle's folder; None: the bundle is older than references are.

        Raises:
            UserError: damaged, or of a later version.
        """
        path = folder / _FILE
        if not path.is_file():
            return None
        try:
            content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            if content.pop("format") != _FORMAT:
                mend = "update raysys, or train again"
                raise UserError("written by a later version", where=str(path), mend=mend)
            variables = tuple(
                Variable(
                    each["kind"],
                    each["name"],
                    Cut(np.array(each["ends"], np.float32), each["categorical"]),
                    tuple(each["counts"]),
                )
                for each in content.pop("variables")
            )
            outcomes = {name: Outcomes(**each) for name, each in content.pop("outcomes").items()}
            return cls(variables=variables, outcomes=outcomes, **content)
        except (ValueError, KeyError, TypeError) as error:
            mend = "train again (`raysys train`), or roll back to another bundle"
            raise UserError(f"damaged: {error}", where=str(path), mend=mend) from None


_PLAIN = ("surface", "since", "until", "requests", "people", "rows", "items", "labels")


def variables_of(
    kind: Kind, columns: Mapping[str, Float32], categorical: frozenset[str] = frozenset()
) -> tuple[Variable, ...]:
    """Bins and counts of columns, each float32[n], NaN (or infinite, of scores) where missing."""
    found = []
    for name, values in columns.items():
        finite = np.where(np.isfinite(values), values, np.float32(np.nan))
        kept = values if kind == "feature" else finite
        cut = Cut.of(kept, name in categorical)
        counts = np.bincount(cut.place(kept), minlength=cut.bins)
        found.append(Variable(kind, name, cut, tuple(int(n) for n in counts)))
    return tuple(found)


def drawn_rows(sizes: Int64, most: int = ROWS, seed: int = 0) -> Int64:
    """At most so many rows of each request, drawn without regard to their order: int64[m].

    Args:
        sizes: int64[r], rows of each request, which lie side by side.
        most: of each.
        seed: of the draw.
    """
    n = int(sizes.sum())
    group = np.repeat(np.arange(len(sizes)), sizes)
    order = np.lexsort((np.random.default_rng(seed).random(n), group))
    rank = np.arange(n) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    rows: Int64 = np.sort(order[rank < most])
    return rows
