"""Boosting in pieces: what a fit that was killed needs to end with the same trees.

The state of a library's random numbers cannot be saved. So the trees are fitted in pieces of
`CheckpointFolder.every`, each from the trees before it as they lie in a file, with a seed of its
own. A fit that goes on from a checkpoint does what one that was never cut off does: the trees are
the same to the last bit. Without a folder there is one piece.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

from raysys.learners.protocol import Report
from raysys.storage import CheckpointFolder

TREES, COURSE = "trees", "course.json"


class Pieces:
    """The pieces of one fit, how it goes, and when it ends.

    Args:
        trees: at most.
        patience: end after so many trees without a better score; 0: never.
        report: told each step and score.
        checkpoint: where the fit may have been before, and leaves its state; None: nowhere.

    Attributes:
        model: the trees so far, as their library writes them; None at the beginning.
        scores: NDCG@10 on the tail after each tree.
    """

    def __init__(
        self,
        trees: int,
        patience: int,
        report: Report | None = None,
        checkpoint: CheckpointFolder | None = None,
    ) -> None:
        self._trees, self._patience = trees, patience
        self._report, self._checkpoint = report, checkpoint
        self.model: bytes | None = None
        self.scores: list[float] = []
        self._done = 0
        last = checkpoint.last() if checkpoint else None
        if last is not None:
            course = json.loads((last / COURSE).read_text(encoding="utf-8"))
            self._done, self.scores = int(course["done"]), list(course["scores"])
            self.model = (last / TREES).read_bytes()

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """First and last tree (exclusive) of each piece that is left; `keep` what came of it."""
        length = self._checkpoint.every if self._checkpoint else self._trees
        while self._done < self._trees and not self._enough():
            yield self._done, min(self._done + length, self._trees)

    def tell(self, score: float) -> bool:
        """Take the score after one more tree; whether there are enough trees now."""
        self.scores.append(float(score))
        if self._report is not None:
            self._report(len(self.scores), float(score))
        return self._enough()

    def keep(self, stop: int, model: bytes) -> None:
        """A piece ended; these are all trees so far."""
        self._done, self.model = stop, model
        if self._checkpoint is not None:
            with self._checkpoint.writing(stop) as folder:
                (folder / TREES).write_bytes(model)
                course = {"done": stop, "scores": self.scores}
                (folder / COURSE).write_text(json.dumps(course) + "\n", encoding="utf-8")

    @property
    def best(self) -> int:
        """How many trees rank the tail best, the fewest of equals; all where there is no tail."""
        if not self.scores:
            return self._done
        return self.scores.index(max(self.scores)) + 1

    def _enough(self) -> bool:
        return bool(self._patience and self.scores) and (
            len(self.scores) - self.best >= self._patience
        )
