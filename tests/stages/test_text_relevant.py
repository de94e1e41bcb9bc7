"""Whether a text is relevant: chosen and calibrated on validation, in the report, kept in files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score

from raysys import schema
from raysys.errors import UserError
from raysys.evaluation.text_judge import Cut
from raysys.learners.relevance_model import RelevanceModel
from raysys.learners.text import load_text_model
from raysys.learners.text_protocol import TextModel
from raysys.stages import text
from raysys.stages.text_relevant import best_threshold, calibrate, cut_of
from raysys.storage import Workspace
from raysys.text.pairs import Float32, Pairs
from tests.stages import texts

TREES = {"relevance_trees": {"vectors": None}}


class Words(RelevanceModel):
    """Its score is the number in the text, its grade as much of it as the scale from 1 to 3 has."""

    lowest = 1.0  # type: ignore[assignment]

    def judge(self, pairs: Pairs) -> tuple[Float32, Float32]:
        scores = np.array([float(pairs.items[at]) for at in pairs.item], dtype=np.float32)
        return scores, scores.clip(1, 3)

    def save(self, folder: Path) -> None:
        super().save(folder)

    @classmethod
    def load(cls, folder: Path) -> TextModel:
        raise NotImplementedError


def pairs(scores: list[float], grades: list[float], weights: list[float] | None = None) -> pa.Table:
    rows = [
        {"query": "q", "item_id": "i", "text": f"{s}", "grade": g, "weight": w, "split": "s"}
        for s, g, w in zip(scores, grades, weights or [1.0] * len(scores), strict=True)
    ]
    return pa.Table.from_pylist(rows, schema=schema.LABELLED_PAIRS)


def test_probabilities_hold_where_bare_grades_promise_too_much() -> None:
    rng = np.random.default_rng(0)
    truth = np.where(rng.random(4000) < 0.3, 3.0, 1.0)
    scores = (truth - 2) * 1.5 + 2 + rng.normal(0, 3, 4000)  # beyond the scale mostly
    held, fresh = (pairs(scores[half].tolist(), truth[half].tolist())
                   for half in (slice(2000), slice(2000, None)))  # fmt: skip
    model = Words()
    calibrate("words", model, held, Cut(2.0, 1.0, 3.0))
    found = model.relevant
    assert found is not None and found.slope > 0
    assert found.brier_after < found.brier_before - 0.03
    assert found.error_after < 0.03 < found.error_before
    said = model.predict(fresh)
    likely, true = said["probability"].to_numpy(), truth[2000:] >= 2
    for low, high in ((0, 0.2), (0.2, 0.4), (0.4, 1)):
        some = (likely >= low) & (likely < high)
        assert abs(likely[some].mean() - true[some].mean()) < 0.06
    best = max(f1_score(true, likely >= cut) for cut in np.linspace(0.05, 0.9, 80))
    assert f1_score(true, said["relevant"].to_numpy()) > best - 0.02


def test_pairs_without_weight_or_text_calibrate_nothing() -> None:
    one, other = Words(), Words()
    cut = Cut(2.0, 1.0, 3.0)
    calibrate("words", one, pairs([1, 2, 3, 1.5], [1, 2, 3, 2]), cut)
    calibrate("words", other, pairs([1, 2, 3, 1.5, 9], [1, 2, 3, 2, 1], [1, 1, 1, 1, 0]), cut)
    assert one.relevant == other.relevant is not None


@pytest.mark.parametrize(("grades", "said"), [([1, 1, 1], "none"), ([3, 2, 3], "every one")])
def test_of_one_kind_alone_nothing_is_calibrated_and_that_is_said(
    grades: list[float], said: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = Words()
    calibrate("words", model, pairs([1, 2, 3], grades), Cut(2.0, 1.0, 3.0))
    assert model.relevant is None and model.predict(pairs([1], [1])).column_names == ["grade"]
    assert f"{said} of the 3 validation pairs has a grade of 2 or more" in caplog.text


@settings(max_examples=40)
@given(st.lists(st.tuples(st.sampled_from([0.1, 0.2, 0.5, 0.8]), st.booleans()), min_size=1))
def test_no_threshold_has_a_larger_f1(rows: list[tuple[float, bool]]) -> None:
    probability, true = (np.array(each) for each in zip(*rows, strict=True))
    true = true.astype(bool)
    found = best_threshold(probability.astype(np.float64), true)
    cuts = (0.0, 0.15, 0.3, 0.6)
    values = [f1_score(true, probability >= cut, zero_division=0) for cut in cuts]
    mine = f1_score(true, probability >= found, zero_division=0)
    assert mine == pytest.approx(max(values))


def test_the_upper_half_is_relevant_unless_another_grade_is_named(tmp_path: Path) -> None:
    path = texts.write_judgements(tmp_path / "a.csv")
    tables = {"train": pairs([1, 2, 3], [1, 2, 4])}
    asked = texts.settings_of("relevance", path, TREES)
    assert cut_of(asked, tables) == Cut(2.5, 1.0, 4.0)
    asked = texts.settings_of("relevance", path, TREES, relevant_from=4)
    assert cut_of(asked, tables) == Cut(4.0, 1.0, 4.0)
    for wrong, said in ((1, "every pair"), (4.5, "no pair")):
        asked = texts.settings_of("relevance", path, TREES, relevant_from=wrong)
        with pytest.raises(UserError, match=f"{said} of train is relevant"):
            cut_of(asked, tables)
    with pytest.raises(UserError, match="classify has no grades"):
        texts.settings_of("classify", path, {"tfidf_classifier": {}}, relevant_from=2)


@pytest.mark.long
def test_a_fit_says_what_is_relevant_in_files_figures_and_report(tmp_path: Path) -> None:
    path = texts.write_judgements(tmp_path / "a.csv")
    workspace = Workspace(tmp_path / "ws")
    done = text.run(texts.settings_of("relevance", path, TREES, relevant_from=3), workspace)
    folder = workspace.text / "text-relevance"
    model = load_text_model(folder / "models" / "relevance_trees")
    assert isinstance(model, RelevanceModel) and model.relevant is not None
    assert model.relevant.cut == 3
    told = done.figures["relevant"]
    assert told["from"] == 3
    assert told["relevance_trees"]["threshold"] == pytest.approx(model.relevant.threshold)
    figures = done.figures["test"]["relevance_trees"]
    for name in ("relevant_f1", "brier", "brier_before", "calibration_error"):
        assert figures[name]["low"] <= figures[name]["high"]
    said = pl.read_parquet(folder / "predictions" / "relevance_trees.parquet")
    test = said.filter(split="test")
    true = test["grade"] >= 3
    brier = ((test["predicted_probability"].cast(pl.Float64) - true.cast(pl.Float64)) ** 2).mean()
    assert figures["brier"]["value"] == pytest.approx(brier)
    enough = test["predicted_probability"] >= model.relevant.threshold
    assert (test["predicted_relevant"] == enough).all()
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "Brier score of the bare grade" in page and "a grade of 3 or more" in page
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    assert report["relevant"] == told


@pytest.mark.parametrize("scores", [[2.0] * 6, [1.0, 2.0, 3.0, float("nan"), 1.0, 2.0]])
def test_scores_that_say_nothing_get_no_probability(
    scores: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    model = Words()
    calibrate("words", model, pairs(scores, [1, 3, 1, 3, 1, 3]), Cut(2, 1, 3))
    assert model.relevant is None
    assert "words gives no probability of being relevant: its scores" in caplog.text
