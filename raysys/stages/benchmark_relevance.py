"""`raysys benchmark relevance`: rank any file of judged pairs, within a budget of time.

Settings are chosen by what this machine does in a second (`relevance_members`). Members are fitted
on folds of the training queries; ensembles on what each said of the fold that it did not see, and
on validation queries, of which all folds' models speak as they will of queries to come.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from raysys.config import parse_settings
from raysys.ensemble import BaseScores, Ensemble, EnsembleSettings, Judgements, fit_ensemble
from raysys.learners.relevance_blend import fit_weights
from raysys.learners.relevance_trees import RelevanceTreesSettings
from raysys.progress import task
from raysys.stages.benchmark_pairs import LEAST_QUERIES, Judged, divided, pool_of
from raysys.stages.relevance_judging import SPLITS, WEIGHTED, Ground, Member, figures_of
from raysys.stages.relevance_members import Budget, columns_of, fit_members
from raysys.text.models import PACKAGED, model_folder
from raysys.text.pairs import Float32

log = logging.getLogger("raysys")

FAMILY = {
    "relevance_trees": "tree",
    "relevance_trees_ranking": "tree",
    "bi_encoder": "transformer",
    "cross_encoder": "transformer",
}
PROBE_PAIRS = 4000
"""Pairs on which the pace of features is measured; of fewer than twice as many all are taken."""
FOR_FEATURES = 0.25
"""Of the budget, at most, for features; of a file that would need more, fewer queries are drawn."""
SERVED_FROM = 100
"""Validation queries from which an ensemble may be fitted on them."""


def run(
    file: Path,
    *,
    query_col: str | None = None,
    text_cols: Sequence[str] = (),
    label_col: str | None = None,
    minutes: float = 60.0,
    seed: int = 0,
    queries: int | None = None,
    language: str = "english",
    model: str = PACKAGED,
    **files: Any,
) -> dict[str, Any]:
    """Figures of a file: each member, their ensemble, and its gain over the best of them.

    Args:
        file: see `pool_of`, as for the columns.
        query_col: column of the query; None: guessed.
        text_cols: columns of the item's text; none: guessed.
        label_col: column of the grade; None: guessed.
        minutes: that it may take.
        seed: of everything random.
        queries: at most so many; None: all.
        language: of the texts, as Snowball names it: for stems.
        model: the packaged all-MiniLM-L6-v2, a folder, or the id of a Hugging Face model.
        files: further ones, and how their rows are read: see `pool_of`.

    Raises:
        UserError: see `pool_of` and `divided`; no such language or model.
    """
    budget = Budget(minutes * 60)
    parse_settings(RelevanceTreesSettings, {"language": language}, where="relevance")
    model_folder(model, where="model")
    with task("relevance: reading"):
        pool = pool_of(file, query_col, text_cols, label_col, **files)

        def read(most: int | None) -> tuple[Judged, Ground]:
            judged = divided(pool, seed=seed, queries=most)
            return judged, Ground.of(judged, seed, language=language, model=model)

        judged, ground = read(queries)
        most = _affordable_queries(ground, read, budget)
        if most is not None:
            log.warning("relevance: there is time for the features of %s queries alone", most)
            judged, ground = read(most)
    members, skipped = fit_members(ground, budget)
    with task("relevance: ensemble"):
        began = time.monotonic()
        ensembles = join_members(ground, members, seed)
        figures = figures_of(ground, members, ensembles)
        took = time.monotonic() - began
    return {
        "file": file.name,
        **judged.told,
        "pairs": {name: len(each) for name, each in ground.pairs.items()},
        "queries": {name: len(each.queries) for name, each in ground.pairs.items()},
        "rows_left_out": judged.dropped,
        "rows_merged": judged.merged,
        "language": language,
        "model": model,
        **figures,
        "skipped": skipped,
        "minutes_given": minutes,
        "ensemble_seconds": round(took, 2),
        "seconds": round(time.monotonic() - budget.began, 1),
        "seed": seed,
    }


def _affordable_queries(
    ground: Ground, read: Callable[[int], tuple[Judged, Ground]], budget: Budget
) -> int | None:
    """How many queries may be drawn for their features to be made in time; None: all of them."""
    pairs = sum(map(len, ground.pairs.values()))
    names = sum(len(each.queries) for each in ground.pairs.values())
    if pairs < 2 * PROBE_PAIRS:
        return None
    few = read(max(LEAST_QUERIES, names * PROBE_PAIRS // pairs))[1]
    whole = seconds_of_features(few) * pairs / sum(map(len, few.pairs.values()))
    share = FOR_FEATURES * budget.left / max(whole, 1e-9)
    return None if share >= 1 else max(LEAST_QUERIES, int(names * share))


def seconds_of_features(ground: Ground) -> float:
    """What the features of these pairs take, vectors apart."""
    began = time.monotonic()
    columns_of(ground, None)
    return time.monotonic() - began


def join_members(
    ground: Ground, members: Mapping[str, Member], seed: int
) -> dict[str, tuple[dict[str, Float32], dict[str, Any]]]:
    """Grades (by weights that never fall below 0) and orders (by the ensemble), by split."""
    train = ground.pairs["train"]
    names = tuple(members)
    stacked = np.stack([members[name].said["train"] for name in names])
    weights = fit_weights(stacked, train.grade, train.weight, ridge=1e-3, non_negative=True)
    low, high = float(train.grade.min()), float(train.grade.max())
    guessed = {
        split: np.clip(
            weights[:-1] @ np.stack([members[name].said[split] for name in names]) + weights[-1],
            low,
            high,
        ).astype(np.float32)
        for split in SPLITS
    }
    found: dict[str, tuple[dict[str, Float32], dict[str, Any]]] = {
        WEIGHTED: (
            guessed,
            {"weights": dict(zip(names, weights[:-1].round(4).tolist(), strict=True))},
        )
    }
    placed = {split: _base_scores(ground, members, split, seed) for split in SPLITS}
    try:
        ensemble = _fitted(placed["train"][0])
    except ValueError as error:  # every query has grades of one kind: there is no order to learn
        log.warning("relevance: no ensemble by order: %s", error)
        return found
    ordered = {split: _in_place(*placed[split], ensemble) for split in SPLITS}
    found["order"] = (ordered, _told(ensemble))
    if placed["validation"][0].n_requests >= SERVED_FROM:
        try:
            found["order_as_served"] = _as_served(placed)
        except ValueError as error:
            log.warning("relevance: no ensemble by the order of validation: %s", error)
    return found


def _as_served(
    placed: Mapping[str, tuple[BaseScores, npt.NDArray[np.int64]]],
) -> tuple[dict[str, Float32], dict[str, Any]]:
    """An ensemble fitted on validation queries, and judged there half by half.

    Of a query to come members say the mean of their folds' models, which is better than what one
    of them said out of fold, by far where each saw a half. Only validation knows by how much.
    """
    base, order = placed["validation"]
    held = np.empty(len(order), dtype=np.float32)
    halves = [np.arange(half, base.n_requests, 2) for half in (0, 1)]
    for fitted, judged in (halves, halves[::-1]):
        part = base.take(judged)
        said = _fitted(base.take(fitted)).score(part.base, part.offsets).score
        held[order[base.judgements.rows(judged)]] = said
    ensemble = _fitted(base)
    return {"validation": held, "test": _in_place(*placed["test"], ensemble)}, _told(ensemble)


def _fitted(scores: BaseScores) -> Ensemble:
    return fit_ensemble(scores, {name: FAMILY[name] for name in scores.base}, EnsembleSettings())


def _in_place(base: BaseScores, order: npt.NDArray[np.int64], ensemble: Ensemble) -> Float32:
    """Scores of the pairs in their own order, float32[n]."""
    said = np.empty(len(order), dtype=np.float32)
    said[order] = ensemble.score(base.base, base.offsets).score
    return said


def _told(ensemble: Ensemble) -> dict[str, Any]:
    full = ensemble.fallbacks["full"]
    share = {name: round(value, 4) for name, value in full.share.items()}
    return {"method": full.method, "weights": share}


def _base_scores(
    ground: Ground, members: Mapping[str, Member], split: str, seed: int
) -> tuple[BaseScores, npt.NDArray[np.int64]]:
    """Base scores with a query as a request, in random order, and the rows of the pairs in them.

    Items are numbered at random too: numbers decide between equal scores, and those by first
    appearance would tell the grades of a file that is sorted by them.
    """
    pairs = ground.pairs[split]
    draws = np.random.default_rng(seed)
    lists = pairs.lists()
    lists = [lists[at] for at in _drawn(pairs.queries, draws)]
    number = np.empty(len(pairs.items), dtype=np.int32)
    number[_drawn(pairs.items, draws)] = np.arange(len(pairs.items), dtype=np.int32)
    order = np.concatenate(lists)
    sizes = np.array([len(rows) for rows in lists])
    gain = pairs.grade - float(ground.pairs["train"].grade.min())
    label = np.maximum(gain, 0.0).astype(np.float32)[order]
    owner = np.repeat(np.arange(len(sizes)), sizes)
    judgements = Judgements(
        item=number[pairs.item[order]],
        label=label,
        offsets=np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
        n_relevant=np.bincount(owner, label > 0, len(sizes)).astype(np.int32),
    )
    scores = BaseScores(
        request=np.arange(len(sizes), dtype=np.int32),
        fold=np.ones(len(sizes), dtype=np.int32),
        judgements=judgements,
        base={name: member.said[split][order] for name, member in members.items()},
    )
    return scores, order


def _drawn(texts: Sequence[str], draws: np.random.Generator) -> npt.NDArray[np.int64]:
    """Places of the texts in random order, which is the same however they stood."""
    ordered = np.array(sorted(range(len(texts)), key=texts.__getitem__), dtype=np.int64)
    return ordered[draws.permutation(len(texts))]
