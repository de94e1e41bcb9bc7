"""Trees over base scores: they learn what weights cannot, and serve what was fitted."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from raysys.ensemble import BaseScores, Beside, Ensemble, EnsembleSettings, fit_ensemble, ndcg
from raysys.ensemble.bench import Bench
from raysys.ensemble.methods import FIRST_LEVEL
from raysys.ensemble.tree_stack import TreeStackSettings
from raysys.errors import UserError
from raysys.features.batch import Batch
from tests.ensemble.planted import planted

FAMILIES = {"a": "tree", "b": "transformer", "popular": "baseline"}
TREES = TreeStackSettings(
    features=("regular",), n_estimators=40, num_leaves=6, min_child_samples=50, learning_rate=0.2
)
SETTINGS = EnsembleSettings(methods=("stack_standard", "two_level"), blocks=2, trees=TREES)


def turns(seed: int = 0) -> tuple[BaseScores, Batch]:
    """Member `a` knows what regulars want, `b` what newcomers want; a feature tells who is who."""
    scores = planted(dict.fromkeys(FAMILIES, 0.3), n_requests=400, n_candidates=25, folds=(1,),
                     seed=seed)  # fmt: skip
    rng = np.random.default_rng(seed + 99)
    sizes = np.diff(scores.offsets)
    regular = np.repeat(rng.random(scores.n_requests) < 0.5, sizes)
    noise = rng.normal(size=(3, len(regular))).astype(np.float32)
    base = {
        "a": np.where(regular, scores.base["a"], noise[0]),
        "b": np.where(regular, noise[1], scores.base["b"]),
        "popular": noise[2],
    }
    batch = Batch(
        names=("other", "regular"),
        features=np.stack([noise[0], regular.astype(np.float32)], axis=1),
        item=scores.judgements.item,
        offsets=scores.offsets,
        history=[np.empty(0, np.int32)] * scores.n_requests,
        user=np.zeros(scores.n_requests, np.int32),
    )
    return BaseScores(scores.request, scores.fold, scores.judgements, base), batch


def beside(batch: Batch, **more: object) -> Beside:
    return Beside(names=("regular",), raw=batch.columns(("regular",)), **more)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def fitted() -> Ensemble:
    scores, batch = turns()
    return fit_ensemble(scores, FAMILIES, SETTINGS, beside(batch))


def mean_ndcg(scores: BaseScores, said: np.ndarray) -> float:
    return float(np.nanmean(ndcg(scores.judgements, scores.judgements.ranks(said), 10)))


@pytest.mark.long
def test_they_trust_one_member_for_some_and_another_for_others(fitted: Ensemble) -> None:
    full = fitted.fallbacks["full"]
    assert full.method in ("two_level", "tree") and full.stacked is not None
    later, batch = turns(seed=1)
    said = fitted.score(later.base, later.offsets, batch)
    weights, _ = full.answer(later.base, later.offsets)  # without raw features weights answer
    assert mean_ndcg(later, said.score) > mean_ndcg(later, weights) + 0.02
    assert ((said.probability > 0) & (said.probability < 1)).all()
    order = np.argsort(said.score, kind="stable")
    assert (np.diff(said.probability[order]) >= 0).all()
    assert sum(full.share.values()) == pytest.approx(1)
    assert full.share["a"] > full.share["popular"] < full.share["b"]


def test_fallbacks_have_no_trees(fitted: Ensemble) -> None:
    assert all(c.stacked is None for name, c in fitted.fallbacks.items() if name != "full")


def test_trees_come_back_as_they_were_and_serve_the_same(fitted: Ensemble, tmp_path: Path) -> None:
    fitted.save(tmp_path / "ensemble.json")
    again = Ensemble.load(tmp_path / "ensemble.json")
    later, batch = turns(seed=1)
    whole = fitted.score(later.base, later.offsets, batch)
    read = again.score(later.base, later.offsets, batch)
    assert np.array_equal(whole.score, read.score)
    assert np.array_equal(whole.probability, read.probability)
    for request in (0, 7, 123):  # one request at a time, as when serving
        rows = slice(later.offsets[request], later.offsets[request + 1])
        one = replace(
            batch.take_requests(np.array([request])), offsets=np.array([0, rows.stop - rows.start])
        )
        base = {name: said[rows] for name, said in later.base.items()}
        assert np.array_equal(again.score(base, one.offsets, one).score, whole.score[rows])


def test_trees_of_other_columns_are_refused(fitted: Ensemble, tmp_path: Path) -> None:
    path = tmp_path / "ensemble.json"
    fitted.save(path)
    content = json.loads(path.read_text())
    content["fallbacks"]["full"]["stacked"]["trees"]["features"] += ["another"]
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="columns"):
        Ensemble.load(path)


def test_a_lost_member_leaves_it_to_the_weights(fitted: Ensemble) -> None:
    later, batch = turns(seed=1)
    base = {name: said for name, said in later.base.items() if name != "b"}
    found = fitted.score(base, later.offsets, batch)
    assert np.isfinite(found.score).all() and found.fallback != "full"


def test_the_first_level_does_not_see_the_rows_that_trees_learn_from() -> None:
    """Weights of each inner block are those of a fit on the other blocks."""
    scores, _ = turns()
    few = TreeStackSettings(n_estimators=2)
    settings = EnsembleSettings(methods=("two_level",), blocks=2, trees=few)
    bench = Bench(scores, tuple(FAMILIES), settings)
    asked: list[set[int]] = []
    from raysys.ensemble import methods

    real = methods._levels

    def witness(names: object, members: object, lesson: object, settings: object) -> np.ndarray:
        asked.append(set(np.round(lesson.forms["a", "standard"], 5).tolist()))  # type: ignore[attr-defined]
        return real(names, members, lesson, settings)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(methods, "_levels", witness)
        formula = bench.fit("two_level", tuple(FAMILIES), np.arange(scores.n_requests))
    assert formula.trees is not None and len(formula.trees.first_level) == len(FIRST_LEVEL)
    whole, first, second = asked
    assert len(first) < len(whole) > len(second)
    # what the halves share are values that occur twice by chance, such as 0
    assert len(first & second) < 0.1 * len(whole)


def test_one_who_hardly_counts_may_be_lost(fitted: Ensemble) -> None:
    """Trees look at `popular` too; the weights, which stand by, can do without."""
    later, batch = turns(seed=1)
    full = fitted.fallbacks["full"]
    assert full.share_of_weights["popular"] < 0.05
    base = {name: said for name, said in later.base.items() if name != "popular"}
    found = fitted.score(base, later.offsets, batch)
    assert found.fallback == "full"
    weights, _ = full.answer(base, later.offsets)
    assert np.array_equal(found.score, weights)


def test_a_feature_that_is_not_there_leaves_it_to_the_weights(fitted: Ensemble) -> None:
    later, batch = turns(seed=1)
    poor = replace(batch, names=("other", "another"))
    full = fitted.fallbacks["full"]
    assert full.stacked is not None
    found = full.answer(later.base, later.offsets, poor)[0]
    assert np.array_equal(found, full.answer(later.base, later.offsets)[0])
