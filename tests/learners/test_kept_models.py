"""Fits of several models that were cut off: those that had ended are not fitted again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from raysys.learners.kept_models import KeptModels, fingerprint_of
from raysys.learners.relevance_trees import RelevanceTreesLearner
from raysys.learners.text import make_text_learner
from raysys.learners.text_protocol import TextContext
from raysys.learners.tfidf_classifier import TfidfClassifier
from tests.learners.label_suite import titles
from tests.text.shop_pairs import judged_pairs

WORDS = {"terms": [["words", 1, 1]], "costs": [3.0]}
LETTERS = {"terms": [["letters", 2, 4]], "costs": [3.0]}
TREES = {"n_estimators": 10, "factors": 2, "min_child_samples": 5, "vectors": None}


class KilledError(Exception):
    """Stands for the kill: nothing is cleaned up."""


def relevance() -> tuple[pa.Table, pa.Table]:
    table = judged_pairs()
    train, validation = (table.filter(pc.equal(table["split"], x)) for x in ("train", "validation"))
    return train, validation


def labels() -> tuple[pa.Table, pa.Table]:
    return titles(200, "train", 0), titles(120, "validation", 0)


def half_labelled() -> tuple[pa.Table, pa.Table]:
    train, validation = labels()
    known = pa.array([x if at < 80 else None for at, x in enumerate(train["label"].to_pylist())])
    at = train.schema.get_field_index("label")
    return train.set_column(at, train.schema.field(at), known), validation


CASES: dict[str, tuple[Any, Any, dict[str, Any], int]] = {
    "relevance_blend": (
        relevance, RelevanceTreesLearner,
        {"members": [{"learner": "relevance_trees", "settings": {**TREES, "num_leaves": n}}
                     for n in (4, 8)], "folds": 2}, 4,
    ),
    "text_blend": (
        labels, TfidfClassifier,
        {"members": {"words": {"learner": "tfidf_classifier", "settings": WORDS},
                     "letters": {"learner": "tfidf_classifier", "settings": LETTERS}}}, 2,
    ),
    "pseudo_labels": (
        half_labelled, TfidfClassifier,
        {"settings": WORDS, "confidence": 0.3, "rounds": 1, "most_per_label": 50}, 2,
    ),
}  # fmt: skip


@pytest.mark.long
@pytest.mark.parametrize("name", CASES)
def test_models_that_ended_are_not_fitted_again(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, member, settings, fits = CASES[name]
    train, validation = read()
    learner = make_text_learner(name, settings)
    fitted: list[int] = []
    at: list[int] = []
    fit = member.fit

    def counted(self: Any, *given: Any) -> Any:
        if len(fitted) in at:
            raise KilledError
        fitted.append(len(given[0]))
        return fit(self, *given)

    monkeypatch.setattr(member, "fit", counted)
    whole = learner.fit(train, validation, TextContext(tmp_path / "whole", seed=3))
    assert len(fitted) == fits
    every = fitted.copy()
    fitted.clear()
    context = TextContext(tmp_path / "cut", seed=3)
    at.append(1)
    with pytest.raises(KilledError):
        learner.fit(train, validation, context)
    at.clear()
    assert len(fitted) == 1
    resumed = learner.fit(train, validation, context)
    assert fitted == every  # the first before the kill, the others after it
    assert resumed.predict(validation).equals(whole.predict(validation))
    assert not [path for path in context.scratch.rglob("*") if path.is_file()]


@pytest.mark.parametrize("changed", ["rows", "seed", "settings"])
def test_another_fit_in_the_same_scratch_takes_nothing(changed: str, tmp_path: Path) -> None:
    train, validation = titles(40, "train", 0), titles(20, "validation", 0)

    def learner(settings: dict[str, Any]) -> Any:
        return make_text_learner("tfidf_classifier", settings)

    made = learner(WORDS)
    model = made.fit(train, validation, TextContext(tmp_path))
    fits: list[str] = []

    def fit() -> Any:
        fits.append("one")
        return model

    def kept(settings: dict[str, Any], seed: int, rows: pa.Table) -> None:
        context = TextContext(tmp_path, seed)
        found = KeptModels("blend", learner(settings).settings, context, rows, validation)
        found.model("member=0", "tfidf_classifier", fit)

    kept(WORDS, 0, train)
    kept(WORDS, 0, pa.concat_tables([train.slice(0, 7), train.slice(7)]))  # the same rows
    assert len(fits) == 1
    kept(
        LETTERS if changed == "settings" else WORDS,
        1 if changed == "seed" else 0,
        train.slice(1) if changed == "rows" else train,
    )
    assert len(fits) == 2


def test_a_model_that_was_not_written_to_its_end_is_fitted_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, validation = titles(40, "train", 0), titles(20, "validation", 0)
    made = make_text_learner("tfidf_classifier", WORDS)
    model = made.fit(train, validation, TextContext(tmp_path))

    def kept() -> Any:
        found = KeptModels("blend", made.settings, TextContext(tmp_path), train)
        return found.model("member=0", "tfidf_classifier", lambda: model)

    save = type(model).save

    def half(self: Any, folder: Path) -> None:
        save(self, folder)
        raise KilledError

    monkeypatch.setattr(type(model), "save", half)
    with pytest.raises(KilledError):
        kept()
    monkeypatch.setattr(type(model), "save", save)
    assert kept() is model  # fitted, not found
    assert kept().predict(validation).equals(model.predict(validation))


def test_a_table_is_known_by_what_it_holds() -> None:
    table = titles(30, "train", 0)
    same = pa.concat_tables([table.slice(0, 4), table.slice(4)]).replace_schema_metadata({"a": "b"})
    assert fingerprint_of(same) == fingerprint_of(table) != fingerprint_of(table.slice(1))
    assert fingerprint_of(table.slice(3, 9)) == fingerprint_of(
        pa.table(table.slice(3, 9).to_pydict(), table.schema)
    )


def test_a_kill_while_kept_models_go_leaves_no_half_of_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, validation = titles(40, "train", 0), titles(20, "validation", 0)
    learner = make_text_learner("tfidf_classifier", WORDS)
    model = learner.fit(train, validation, TextContext(tmp_path / "own"))
    context = TextContext(tmp_path / "scratch")
    fits: list[str] = []

    def fit() -> Any:
        fits.append("one")
        return model

    def killed(folder: Path, **_: Any) -> None:
        inner = sorted(
            path for path in folder.rglob("*") if path.is_file() and path.parent != folder
        )
        for path in inner:  # what is in a folder goes before what lies beside it
            path.unlink()
            raise KilledError

    def blended() -> None:
        with KeptModels("blend", learner.settings, context, train, validation) as kept:
            kept.model("member=0", "tfidf_classifier", fit)

    with monkeypatch.context() as patched:
        patched.setattr("raysys.learners.kept_models.shutil.rmtree", killed)
        with pytest.raises(KilledError):
            blended()
    blended()
    assert len(fits) == 2
    assert not list(context.scratch.iterdir())
