"""Transformers of `raysys benchmark relevance`, each fitted on folds as far as its time goes.

What a step costs is measured on a few pairs first, and so is how long the texts are: nearly all are
read whole where every pair can still be seen once in the time that there is, else their beginning.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from raysys.learners.relevance_blend import member_class
from raysys.learners.text_protocol import TextContext, TextModel
from raysys.stages.relevance_judging import Ground, Member
from raysys.text.bi_encoder import text_tokens
from raysys.text.cross_encoder import pair_tokens
from raysys.text.models import model_folder, open_tokenizer
from raysys.text.pairs import Float32, Pairs

FOLDS = 2
EPOCHS = 2
PROBE = 96
MARGIN = 0.8
"""Of what is left of the budget, how much is planned: measurements on a few pairs err."""
LIST = 6
"""Pairs of a query that a step of the bi-encoder sees."""
SHORT, LONG = 48, 192
"""Tokens that are read at least, and at most: attention over more takes the time of many pairs."""
WHOLE = 0.95
"""The share of texts that are to be read to their end."""
MEASURED = 400


def fit_encoder(name: str, ground: Ground, seconds: float, scratch: Path) -> Member | str:
    """A transformer fitted as long as it may take; or why it was not.

    Args:
        name: bi_encoder or cross_encoder.
        ground: to learn from and to score.
        seconds: for all of it.
        scratch: a folder that is not there yet.

    Raises:
        UserError: no such model, or pairs of which it can learn nothing.
    """
    if seconds < 20:
        return f"{seconds:.0f} s are left for it"
    fits = _Fits(name, ground, seconds, scratch)
    least = max(1, min(fits.whole, 60))
    enough = max(least, fits.whole / EPOCHS)
    pace = fits.pace(SHORT)
    wanted = tokens_to_read(name, ground.pairs["train"], ground.model, ground.seed)
    # measured only where it may be worth it: short times are soon spent on measurements
    if wanted > SHORT and fits.affordable(pace.at(wanted)) >= enough:
        longer = fits.pace(wanted)
        pace = longer if fits.affordable(longer) >= enough else pace
    steps = fits.affordable(pace)
    if steps < least:
        return (
            f"{seconds:.0f} s are left for it, scoring takes {fits.scoring(pace):.0f} s and a step "
            f"{pace.step:.2f} s"
        )
    return fits.member(pace, steps)


def tokens_to_read(name: str, pairs: Pairs, model: str, seed: int) -> int:
    """Tokens of nearly every pair (two towers: of nearly every item), from `SHORT` to `LONG`."""
    tokenizer = open_tokenizer(model_folder(model, where="model"), model, "model")
    rng = np.random.default_rng(seed)
    if name == "cross_encoder":
        rows = rng.permutation(len(pairs))[:MEASURED]
        lengths = pair_tokens(tokenizer, pairs.take(rows), LONG).lengths
    else:
        some = rng.permutation(len(pairs.items))[:MEASURED]
        lengths = text_tokens(tokenizer, [pairs.items[at] for at in some], LONG).lengths
    longest = int(np.quantile(lengths, WHOLE)) if len(lengths) else SHORT
    return int(np.clip(-(-longest // 16) * 16, SHORT, LONG))


@dataclass(frozen=True)
class Pace:
    """What was measured on a few pairs.

    Attributes:
        tokens: read of each.
        step: seconds of one, in training.
        pair: seconds of one that is scored.
    """

    tokens: int
    step: float
    pair: float

    def at(self, tokens: int) -> Pace:
        """What it would be with so many, about."""
        times = tokens / self.tokens
        return Pace(tokens, self.step * times, self.pair * times)


@dataclass
class _Fits:
    """All fits of one transformer."""

    name: str
    ground: Ground
    seconds: float
    scratch: Path
    began: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.train = self.ground.tables["train"]
        self.fold = self.ground.folds(FOLDS)
        self.inside = [np.flatnonzero(self.fold != number) for number in range(FOLDS)]
        self.batch = 32 if self.name == "cross_encoder" else 8
        self.whole = EPOCHS * min(map(len, self.inside)) // self.batch
        if self.name == "bi_encoder":  # a batch counts queries, of each a part of a long list
            sizes = np.bincount(self.ground.pairs["train"].query)
            self.whole = EPOCHS * int((-(-sizes // LIST)).sum()) // FOLDS // self.batch

    def settings(self, tokens: int, **more: Any) -> dict[str, Any]:
        training = {
            "learning_rate": 1e-4,
            "head_learning_rate": 1e-3 if self.name == "cross_encoder" else 1e-2,
            "batch_size": self.batch,
            "warm_up": 0.06,
            "keep": "last",
            "evaluate_every": {"epochs": 1000},
            "checkpoint_every": None,
        }
        found = {
            "model": self.ground.model,
            "max_tokens": tokens,
            "training": {**training, **more},
        }
        return found | {"list_size": LIST} if self.name == "bi_encoder" else found

    def fit(self, rows: npt.NDArray[np.int64], tokens: int, steps: int, place: str) -> TextModel:
        kind = member_class(self.name)
        learner = kind(kind.settings_model(**self.settings(tokens, epochs=1000, max_steps=steps)))
        where = self.scratch / place
        where.mkdir(parents=True)
        nothing = self.ground.tables["validation"].slice(0, 0)
        return learner.fit(self.train.take(rows), nothing, TextContext(where, self.ground.seed))

    def pace(self, tokens: int) -> Pace:
        rng = np.random.default_rng(self.ground.seed)  # files may be sorted, by grade or length
        some = rng.permutation(self.inside[0])[: 8 * PROBE]
        grade = self.ground.pairs["train"].grade
        others = self.inside[0][grade[self.inside[0]] != grade[some[0]]]
        if len(others):  # of one grade alone nothing can be learned
            some = np.append(some, others[0])
        probe = self.fit(some, tokens, 3, f"probe={tokens}")  # its first steps pay for loading
        at = time.monotonic()
        self.fit(some, tokens, 9, f"pace={tokens}")
        step = (time.monotonic() - at) / 9
        test = self.ground.tables["test"]
        few = test.take(rng.permutation(len(test))[:PROBE])
        at = time.monotonic()
        probe.predict(few)
        return Pace(tokens, step, (time.monotonic() - at) / len(few))

    def scoring(self, pace: Pace) -> float:
        """Seconds of scoring everything."""
        rest = len(self.ground.tables["validation"]) + len(self.ground.tables["test"])
        return pace.pair * (len(self.train) + FOLDS * rest)

    def affordable(self, pace: Pace) -> int:
        """Steps of each fold that the time goes for; no more than two epochs have."""
        left = self.seconds * MARGIN - (time.monotonic() - self.began) - self.scoring(pace)
        return int(max(0.0, min(left / (FOLDS * pace.step), max(self.whole, 20))))

    def member(self, pace: Pace, steps: int) -> Member | str:
        """Fitted on each fold; out of fold on train, the mean of the folds' models elsewhere.

        Or why it cannot be: a model that has seen next to nothing would be half of that mean.
        """
        settings, planned = self.settings(pace.tokens, max_steps=steps), steps
        models = []
        for number, rows in enumerate(self.inside):
            if steps < planned / 2:
                return f"the machine became slower: {steps} of {planned} steps are left for a fold"
            at = time.monotonic()
            models.append(self.fit(rows, pace.tokens, steps, f"fold={number}"))
            now = time.monotonic()
            # a machine that has become much slower leaves the others less
            rest = self.seconds - (now - self.began) - self.scoring(pace)
            left = rest / max(1, FOLDS - 1 - number)
            steps = min(steps, int(left * steps / (now - at)))
        said: dict[str, Float32] = {"train": np.empty(len(self.train), np.float32)}
        for number, made in enumerate(models):
            outside = np.flatnonzero(self.fold == number)
            said["train"][outside] = _grades(made, self.train.take(outside))
        for split in ("validation", "test"):
            grades = [_grades(made, self.ground.tables[split]) for made in models]
            said[split] = np.asarray(np.mean(grades, axis=0, dtype=np.float64), dtype=np.float32)
        return Member(said, settings, time.monotonic() - self.began)


def _grades(model: TextModel, table: pa.Table) -> Float32:
    return np.asarray(model.predict(table)["grade"].to_numpy(), dtype=np.float32)
