"""Members of `raysys benchmark relevance`, each fitted as far as a budget of time goes.

A member is measured on a few pairs, then fitted on folds of the training queries as far as its
share of the budget goes, or skipped.
"""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from raysys.errors import UserError
from raysys.learners.relevance_blend import member_class
from raysys.learners.relevance_trees import (
    RelevanceTreesLearner,
    RelevanceTreesSettings,
    Remembered,
)
from raysys.learners.text_protocol import TextContext, TextModel
from raysys.progress import task
from raysys.stages.relevance_judging import Ground, Member
from raysys.text.models import PACKAGED
from raysys.text.pairs import Float32
from raysys.text.relevance_features import PairFeatures

log = logging.getLogger("raysys")

FOLDS = 3
ENCODER_FOLDS = 2
PROBE = 96
MARGIN = 0.8
"""Of what is left of the budget, how much is planned: measurements on a few pairs err."""


@dataclass
class Budget:
    """Seconds that a run may take.

    Attributes:
        seconds: all of them.
        began: when it did, by a clock that only goes forward.
    """

    seconds: float
    began: float = field(default_factory=time.monotonic)

    @property
    def left(self) -> float:
        """Seconds until it is spent; never below 0."""
        return max(0.0, self.seconds - (time.monotonic() - self.began))


def fit_members(ground: Ground, budget: Budget) -> tuple[dict[str, Member], dict[str, str]]:
    """Whoever the budget allows, and why the others were skipped.

    The cross-encoder takes all it can use before the bi-encoder gets the rest: trees know cosines
    already, and both half fitted are worth less than one.
    """
    members, skipped = _trees(ground, budget)
    with tempfile.TemporaryDirectory() as scratch:
        for name in ("cross_encoder", "bi_encoder"):
            with task(f"relevance: {name}") as fitting:
                found = fit_encoder(name, ground, budget.left, Path(scratch) / name)
                if isinstance(found, str):
                    skipped[name] = found
                    fitting.note = f"skipped: {found}"
                else:
                    members[name] = found
    for name, reason in skipped.items():
        log.warning("relevance: %s was skipped: %s", name, reason)
    return members, skipped


def _trees(ground: Ground, budget: Budget) -> tuple[dict[str, Member], dict[str, str]]:
    """Trees that guess the grade, and trees that order the items of a query."""
    skipped: dict[str, str] = {}
    began = time.monotonic()
    items = {text for each in ground.pairs.values() for text in each.items}
    texts = len(items) + 2 * sum(len(each.queries) for each in ground.pairs.values())
    vectors: str | None = PACKAGED
    learner = RelevanceTreesLearner(RelevanceTreesSettings())
    encode: Remembered | None = None
    with task("relevance: features") as making:
        encode = Remembered(PACKAGED, learner.settings.max_tokens)
        some = list(ground.pairs["train"].items[: 4 * PROBE + 8])
        encode(some[:8])  # loads
        pace = min(_seconds_a_text(encode, some[8 + at :: 2] or some) for at in (0, 1))
        if pace * texts > 0.3 * budget.left:
            vectors, encode = None, None
            skipped["vectors of texts"] = (
                f"{texts:,} texts would take {pace * texts:.0f} s of {budget.left:.0f}"
            )
        columns, features = columns_of(ground, encode)
        making.note = f"{len(features.names)} features of {sum(map(len, columns.values())):,} pairs"
    shared = (time.monotonic() - began) / 2
    members: dict[str, Member] = {}
    for name, objective in (
        ("relevance_trees", "regression"),
        ("relevance_trees_ranking", "lambdarank"),
    ):
        at = time.monotonic()
        settings: dict[str, Any] = {"objective": objective, "vectors": vectors, "colsample": 0.3}
        try:
            with task(f"relevance: {name}"):
                settings["n_estimators"] = _affordable_trees(
                    ground, columns, features, settings, 0.15 * budget.left
                )
                said = _tree_folds(ground, columns, features, settings)
        except UserError as error:  # no query with two grades: nothing to order
            if objective == "regression":
                raise
            skipped[name] = str(error)
            continue
        members[name] = Member(said, settings, time.monotonic() - at + shared)
    return members, skipped


def _seconds_a_text(encode: Remembered, texts: Sequence[str]) -> float:
    began = time.monotonic()
    encode(texts)
    return (time.monotonic() - began) / len(texts)


def columns_of(
    ground: Ground, encode: Remembered | None
) -> tuple[dict[str, Float32], PairFeatures]:
    """Features of every split: the texts of all items are known, grades are not read."""
    catalogue = sorted({text for pairs in ground.pairs.values() for text in pairs.items})
    learner = RelevanceTreesLearner(RelevanceTreesSettings())
    if encode is not None:
        encode.keeping(True)
    try:
        features = learner.learn(ground.pairs["train"], encode, ground.seed, catalogue)
        return {name: features.of(pairs) for name, pairs in ground.pairs.items()}, features
    finally:
        if encode is not None:
            encode.keeping(False)


def _affordable_trees(
    ground: Ground,
    columns: Mapping[str, Float32],
    features: PairFeatures,
    settings: Mapping[str, Any],
    seconds: float,
) -> int:
    """How many trees a fold may have, at most 800: measured on a few."""
    few = 20
    learner = RelevanceTreesLearner(RelevanceTreesSettings(**{**settings, "n_estimators": few}))
    began = time.monotonic()
    learner.fit_columns(features, ground.pairs["train"], columns["train"], None, None, ground.seed)
    pace = (time.monotonic() - began) / few
    return int(np.clip(seconds / max(pace * FOLDS, 1e-9), few, 800))


def _tree_folds(
    ground: Ground,
    columns: Mapping[str, Float32],
    features: PairFeatures,
    settings: Mapping[str, Any],
) -> dict[str, Float32]:
    """Out of fold on train, the mean of the folds' models elsewhere."""
    learner = RelevanceTreesLearner(RelevanceTreesSettings(**settings))
    train, fold = ground.pairs["train"], ground.folds(FOLDS)
    models = []
    said: dict[str, Float32] = {"train": np.empty(len(train), np.float32)}
    for number in range(FOLDS):
        inside, outside = np.flatnonzero(fold != number), np.flatnonzero(fold == number)
        model = learner.fit_columns(
            features,
            train.take(inside),
            columns["train"][inside],
            ground.pairs["validation"],
            columns["validation"],
            ground.seed,
        )
        said["train"][outside] = model.grades(columns["train"][outside])
        models.append(model)
    for split in ("validation", "test"):
        grades = [model.grades(columns[split]) for model in models]
        said[split] = np.asarray(np.mean(grades, axis=0, dtype=np.float64), dtype=np.float32)
    return said


def fit_encoder(
    name: str, ground: Ground, seconds: float, scratch: Path, model: str = PACKAGED
) -> Member | str:
    """A transformer fitted as long as it may take; or why it was not.

    Args:
        name: bi_encoder or cross_encoder.
        ground: to learn from and to score.
        seconds: for all of it.
        scratch: a folder that is not there yet.
        model: where the fit starts.
    """
    began = time.monotonic()
    train, fold = ground.tables["train"], ground.folds(ENCODER_FOLDS)
    batch = 32 if name == "cross_encoder" else 8
    training: dict[str, Any] = {
        "learning_rate": 1e-4,
        "head_learning_rate": 1e-3 if name == "cross_encoder" else 1e-2,
        "batch_size": batch,
        "keep": "last",
        "evaluate_every": {"epochs": 1000},
        "checkpoint_every": None,
    }
    settings = {"model": model, "max_tokens": 48, "training": training}
    nothing = ground.tables["validation"].slice(0, 0)

    def fit(rows: npt.NDArray[np.int64], steps: int, place: str) -> TextModel:
        steps_too = {**settings, "training": {**training, "epochs": 1000, "max_steps": steps}}
        learner = member_class(name)(member_class(name).settings_model(**steps_too))
        where = scratch / place
        where.mkdir(parents=True)
        return learner.fit(train.take(rows), nothing, TextContext(where, ground.seed))

    inside = [np.flatnonzero(fold != number) for number in range(ENCODER_FOLDS)]
    if seconds < 20:
        return f"{seconds:.0f} s are left for it"
    # files may be sorted by grade
    some = np.random.default_rng(ground.seed).permutation(inside[0])[: 8 * PROBE]
    probe = fit(some, 3, "probe")  # its first steps pay for loading
    at = time.monotonic()
    fit(some, 9, "pace")
    step = (time.monotonic() - at) / 9
    at = time.monotonic()
    probe.predict(ground.tables["test"].slice(0, PROBE))
    pair = (time.monotonic() - at) / min(PROBE, len(ground.tables["test"]))
    rest = len(ground.tables["validation"]) + len(ground.tables["test"])
    scoring = pair * (len(train) + ENCODER_FOLDS * rest)
    left = seconds * MARGIN - (time.monotonic() - began) - scoring
    whole = 2 * min(map(len, inside)) // batch  # two epochs
    if name == "bi_encoder":  # a batch counts queries
        whole = 2 * len(ground.pairs["train"].queries) // ENCODER_FOLDS // batch
    steps = int(min(left / (ENCODER_FOLDS * step), max(whole, 20)))
    if steps < min(whole, 60):
        return (
            f"{seconds:.0f} s are left for it, scoring takes {scoring:.0f} s and a step "
            f"{step:.2f} s"
        )
    settings["training"] = {**training, "max_steps": steps}
    models = []
    for number, rows in enumerate(inside):
        at = time.monotonic()
        models.append(fit(rows, steps, f"fold={number}"))
        now = time.monotonic()
        # a machine that has become much slower leaves the others less
        left = (seconds - (now - began) - scoring) / max(1, ENCODER_FOLDS - 1 - number)
        steps = max(1, min(steps, int(left * steps / (now - at))))
    said: dict[str, Float32] = {"train": np.empty(len(train), np.float32)}
    for number, made in enumerate(models):
        outside = np.flatnonzero(fold == number)
        said["train"][outside] = _grades(made, train.take(outside))
    for split in ("validation", "test"):
        grades = [_grades(made, ground.tables[split]) for made in models]
        said[split] = np.asarray(np.mean(grades, axis=0, dtype=np.float64), dtype=np.float32)
    return Member(said, settings, time.monotonic() - began)


def _grades(model: TextModel, table: pa.Table) -> Float32:
    return np.asarray(model.predict(table)["grade"].to_numpy(), dtype=np.float32)
