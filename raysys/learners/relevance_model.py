"""What every relevance model shares: grades, whether a text is relevant, pairs that say nothing."""

from __future__ import annotations

import json
from abc import abstractmethod
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from raysys.learners.text_protocol import JUDGED_RELEVANCE, PREDICTIONS, Task, TextModel
from raysys.text.pairs import Float32, Pairs

FILE = "relevant.json"
Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Relevant:
    """From a score to the probability that a text is relevant, and from when on it is said to be.

    Attributes:
        cut: the grade from which a text is relevant.
        slope: of the log odds, a unit of score; not negative.
        offset: log odds at score 0.
        threshold: probability from which a text is said to be relevant.
        brier_before, error_before: Brier score and expected calibration error on the validation
            pairs of a grade's place on its scale, taken as a probability.
        brier_after, error_after: of the probability, which was fitted on the same pairs.
    """

    cut: float
    slope: float
    offset: float
    threshold: float
    brier_before: float
    brier_after: float
    error_before: float
    error_after: float

    def probability(self, scores: Float32) -> Float64:
        """That each pair is relevant: float64[n] of scores float32[n]."""
        from scipy.special import expit

        found = expit(self.slope * scores.astype(np.float64) + self.offset)
        return np.asarray(found, dtype=np.float64)

    def save(self, folder: Path) -> None:
        """Write one JSON file."""
        content = json.dumps(asdict(self), indent=1, allow_nan=False)
        (folder / FILE).write_text(content + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Relevant | None:
        """Read what `save` wrote; None: nothing there, as in models of earlier versions."""
        path = folder / FILE
        if not path.is_file():
            return None
        return cls(**json.loads(path.read_text(encoding="utf-8")))


class RelevanceModel(TextModel):
    """A fitted relevance learner. A subclass says what it makes of pairs that are not empty.

    Attributes:
        relevant: from its scores to probabilities; None: it gives grades alone.
        lowest: the lowest grade.
    """

    task: ClassVar[Task] = "relevance"
    relevant: Relevant | None = None

    @property
    @abstractmethod
    def lowest(self) -> float:
        """The lowest grade that it learned."""

    @abstractmethod
    def judge(self, pairs: Pairs) -> tuple[Float32, Float32]:
        """Of n ≥ 1 pairs, none of them empty: scores and grades, float32[n] each.

        A grade never falls as the score rises; it ends at the ends of the scale, the score goes on.
        """

    def predict(self, table: pa.Table) -> pa.Table:
        """See `TextModel.predict`; `JUDGED_RELEVANCE` where `relevant` is known.

        An empty query or text is not relevant: its probability is 0.
        """
        pairs = Pairs.of(table.select(["query", "text"]))
        rows = np.flatnonzero(pairs.readable)
        grade = np.full(len(pairs), self.lowest, dtype=np.float32)
        probability = np.zeros(len(pairs), dtype=np.float64)
        said = np.zeros(len(pairs), dtype=np.bool_)
        if len(rows):
            scores, grade[rows] = self.judge(pairs.take(rows))
            if self.relevant is not None:
                probability[rows] = self.relevant.probability(scores)
                said[rows] = probability[rows] >= self.relevant.threshold
        if self.relevant is None:
            return pa.table({"grade": grade}, schema=PREDICTIONS["relevance"])
        columns = {
            "grade": grade,
            "probability": probability.astype(np.float32),
            "relevant": said,
        }
        return pa.table(columns, schema=JUDGED_RELEVANCE)

    def save(self, folder: Path) -> None:
        """See `TextModel.save`; a subclass writes its weights beside."""
        if self.relevant is not None:
            self.relevant.save(folder)
