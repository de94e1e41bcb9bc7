"""Members of `raysys benchmark relevance`, each fitted as far as a budget of time goes.

A member is measured on a few pairs, then fitted on folds of the training queries as far as its
share of the budget goes, or skipped.
"""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from raysys.errors import UserError
from raysys.learners.relevance_trees import (
    RelevanceTreesLearner,
    RelevanceTreesSettings,
    Remembered,
)
from raysys.progress import task
from raysys.stages.relevance_encoders import SHORT, fit_encoder, tokens_to_read
from raysys.stages.relevance_judging import Ground, Member
from raysys.text.pairs import Float32
from raysys.text.relevance_features import PairFeatures

log = logging.getLogger("raysys")

FOLDS = 3
PROBE = 96
FOR_VECTORS = 0.3
"""Of the budget that is left, at most, for vectors of texts."""


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
                try:
                    found = fit_encoder(name, ground, budget.left, Path(scratch) / name)
                except UserError as error:  # what others have learned is worth something without
                    found = str(error)
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
    shared_settings: dict[str, Any] = {
        "vectors": ground.model, "language": ground.language, "colsample": 0.3,
    }  # fmt: skip
    encode: Remembered | None = None
    with task("relevance: features") as making:
        for tokens in _lengths(ground):
            encode = Remembered(ground.model, tokens)
            shared_settings["max_tokens"] = tokens
            takes = _seconds_a_text(encode, ground) * texts
            if takes <= FOR_VECTORS * budget.left:
                break
        else:
            shared_settings["vectors"], encode = None, None
            skipped["vectors of texts"] = (
                f"{texts:,} texts would take {takes:.0f} s of {budget.left:.0f}"
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
        settings = {"objective": objective, **shared_settings}
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


def _lengths(ground: Ground) -> tuple[int, ...]:
    """Tokens of a text that an encoder may read, the most first."""
    usual = RelevanceTreesSettings().max_tokens
    wanted = tokens_to_read("bi_encoder", ground.pairs["train"], ground.model, ground.seed)
    return (wanted, usual) if wanted > SHORT else (usual,)


def _seconds_a_text(encode: Remembered, ground: Ground) -> float:
    """Measured on a few, twice: machines are noisy."""
    items = ground.pairs["train"].items
    rows = np.random.default_rng(ground.seed).permutation(len(items))[: 4 * PROBE + 8]
    some = [items[at] for at in rows]
    encode(some[:8])  # loads
    taken = []
    for part in (some[8::2] or some, some[9::2] or some):
        began = time.monotonic()
        encode(part)
        taken.append((time.monotonic() - began) / len(part))
    return min(taken)


def columns_of(
    ground: Ground, encode: Remembered | None
) -> tuple[dict[str, Float32], PairFeatures]:
    """Features of every split: the texts of all items are known, grades are not read."""
    catalogue = sorted({text for pairs in ground.pairs.values() for text in pairs.items})
    learner = RelevanceTreesLearner(RelevanceTreesSettings(language=ground.language))
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
