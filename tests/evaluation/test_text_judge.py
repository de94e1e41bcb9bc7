"""Figures of text tasks against values by hand and scikit-learn's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from sklearn.metrics import f1_score, ndcg_score

from raysys import schema
from raysys.evaluation.text_judge import Cut, TextJudge, ndcg_by_cluster, reliability_of
from raysys.evaluation.text_report import conclusion, confused
from raysys.learners.text_protocol import JUDGED_RELEVANCE, PREDICTIONS


def texts(**columns: list[Any]) -> pa.Table:
    n = len(next(iter(columns.values())))
    content = {"text_id": list(map(str, range(n))), "text": ["t"] * n, "split": ["test"] * n}
    rows = [
        {**dict.fromkeys(schema.LABELLED_TEXTS.names),
         **{name: values[at] for name, values in {**content, **columns}.items()}}
        for at in range(n)
    ]  # fmt: skip
    return pa.Table.from_pylist(rows, schema=schema.LABELLED_TEXTS)


def labels(said: list[str | None], likeliest: list[str], share: list[float]) -> pa.Table:
    rows = [
        {"label": a, "probability": p, "choices": [{"label": b, "probability": p}], "rating": None}
        for a, b, p in zip(said, likeliest, share, strict=True)
    ]
    return pa.Table.from_pylist(rows, schema=PREDICTIONS["sentiment"])


def test_labels_are_judged_as_scikit_learn_does() -> None:
    rng = np.random.default_rng(0)
    truth = [str(x) for x in rng.choice(["a > x", "a > y", "b"], 300, p=[0.6, 0.3, 0.1])]
    said = [t if rng.random() < 0.7 else "b" for t in truth]
    judge = TextJudge("classify", texts(label=truth), np.arange(300), resamples=200)
    verdict = judge.verdict(labels(said, said, [0.7] * 300))
    figures = verdict.figures
    assert figures["macro_f1"].value == pytest.approx(f1_score(truth, said, average="macro"))
    assert figures["accuracy"].value == pytest.approx(np.mean(np.array(truth) == said))
    top = np.mean([t[0] == s[0] for t, s in zip(truth, said, strict=True)])
    assert figures["accuracy_level_1"].value == pytest.approx(top)
    for figure in (figures["macro_f1"], figures["accuracy"]):
        assert figure.low < figure.value < figure.high
    assert [label.label for label in verdict.by_label] == ["a > x", "a > y", "b"]
    by = dict(zip("abc", f1_score(truth, said, average=None), strict=True))
    assert [label.f1 for label in verdict.by_label] == pytest.approx(list(by.values()))
    assert verdict.wrong.sum() == sum(t != s for t, s in zip(truth, said, strict=True))
    assert "answered" not in figures


def test_no_label_is_wrong_and_counted() -> None:
    judge = TextJudge("classify", texts(label=["a", "a", "b", "b"]), np.arange(4), resamples=100)
    verdict = judge.verdict(labels(["a", None, "b", "b"], ["a", "a", "b", "b"], [0.9] * 4))
    assert verdict.figures["accuracy"].value == 0.75 == verdict.figures["answered"].value
    assert verdict.reliability is not None
    assert verdict.reliability.error == pytest.approx(0.1)


def test_a_wrong_label_that_the_test_lacks_is_no_abstention() -> None:
    frequent, columns, counts = confused(["a", "a", "a", "b"], ["a", "of train", None, "b"])
    assert frequent == ["a", "b"] and columns == ["a", "b", "others", "no label"]
    assert counts.tolist() == [[1, 0, 1, 1], [0, 1, 0, 0]]
    assert confused(["a", "b"], ["b", None])[1] == ["a", "b", "no label"]
    many = [str(at) for at in range(40)]
    frequent, columns, counts = confused(many, many[::-1])
    assert columns[-2:] == ["others", "no label"] and counts.sum() == len(frequent) < 40
    assert not counts[:, -1].any()


def test_a_gain_is_paired_and_that_over_oneself_is_nothing() -> None:
    rng = np.random.default_rng(1)
    truth = [str(x) for x in rng.choice(["a", "b"], 400)]
    judge = TextJudge("classify", texts(label=truth), np.arange(400), resamples=300)
    flip = {"a": "b", "b": "a"}
    good = [t if rng.random() < 0.9 else flip[t] for t in truth]
    worse = [g if rng.random() < 0.95 else flip[g] for g in good]
    verdicts = [judge.verdict(labels(s, s, [1.0] * 400)) for s in (good, worse)]  # type: ignore[arg-type]
    gain = judge.gain(*verdicts)
    apart = verdicts[0].figures["macro_f1"]
    assert gain.value > 0 and gain.high - gain.low < apart.high - apart.low
    same = judge.gain(verdicts[0], verdicts[0])
    assert (same.value, same.low, same.high) == (0, 0, 0)


def test_clusters_widen_intervals() -> None:
    truth = ["a", "b"] * 200
    said = [t if at < 300 else "b" for at, t in enumerate(truth)]
    single = TextJudge("classify", texts(label=truth), np.arange(400), resamples=300)
    grouped = TextJudge("classify", texts(label=truth), np.arange(400) // 40, resamples=300)
    widths = []
    for judge in (single, grouped):
        figure = judge.verdict(labels(said, said, [1.0] * 400)).figures["accuracy"]  # type: ignore[arg-type]
        widths.append(figure.high - figure.low)
    assert widths[1] > 2 * widths[0]


def spans(*found: tuple[int, int, str]) -> list[dict[str, Any]]:
    return [{"start": a, "end": b, "label": c} for a, b, c in found]


def test_spans_are_right_only_if_exact() -> None:
    truth = texts(spans=[spans((0, 4, "brand"), (5, 7, "size")), spans((0, 3, "brand")), []])
    told = [[(0, 4, "brand"), (5, 8, "size")], [(0, 3, "brand")], [(1, 2, "colour")]]
    rows = [
        {"spans": [{**s, "text": "", "probability": 0.8} for s in spans(*found)]} for found in told
    ]
    said = pa.Table.from_pylist(rows, schema=PREDICTIONS["entities"])
    judge = TextJudge("entities", truth, np.arange(3), resamples=100)
    verdict = judge.verdict(said)
    assert verdict.figures["precision"].value == 2 / 4
    assert verdict.figures["recall"].value == pytest.approx(2 / 3)
    assert verdict.figures["micro_f1"].value == pytest.approx(4 / 7)
    assert verdict.wrong.tolist() == [True, False, True]
    assert [(label.label, label.f1) for label in verdict.by_label] == [("brand", 1), ("size", 0)]
    assert judge.gain(verdict, verdict).value == 0


def pairs(query: list[str], grade: list[float]) -> pa.Table:
    rows = [
        {"query": q, "item_id": "i", "text": "t", "grade": g, "weight": 1.0, "split": "test"}
        for q, g in zip(query, grade, strict=True)
    ]
    return pa.Table.from_pylist(rows, schema=schema.LABELLED_PAIRS)


def test_relevance_is_judged_by_query() -> None:
    rng = np.random.default_rng(2)
    query = np.repeat(np.arange(40), 15)
    grade = rng.integers(1, 4, 600).astype(float)
    guess = (grade + rng.normal(0, 1, 600)).astype(np.float32)
    judge = TextJudge(
        "relevance", pairs(query.astype(str).tolist(), grade.tolist()), query, least_grade=1.0,
        resamples=200,
    )  # fmt: skip
    verdict = judge.verdict(pa.table({"grade": guess}, schema=PREDICTIONS["relevance"]))
    theirs = ndcg_score((grade - 1).reshape(40, 15), guess.reshape(40, 15), k=10)
    assert verdict.figures["ndcg@10"].value == pytest.approx(theirs)
    rmse = np.sqrt(np.mean((guess - grade) ** 2))
    assert verdict.figures["rmse"].value == pytest.approx(rmse, rel=1e-5)
    perfect = judge.verdict(
        pa.table({"grade": grade.astype(np.float32)}, schema=PREDICTIONS["relevance"])
    )
    assert perfect.figures["ndcg@10"].value == 1
    gain = judge.gain(perfect, verdict)
    assert gain.value == pytest.approx(1 - theirs) and gain.low > 0


def test_ties_do_not_follow_the_order_of_the_file() -> None:
    query, gain = np.zeros(4, np.int64), np.array([3.0, 0, 0, 0])
    for turn in range(4):
        value = ndcg_by_cluster(query, np.ones(4), np.roll(gain, turn), 10)[0]
        expected = 0.25 * sum(1 / np.log2(at) for at in range(2, 6))
        assert value == pytest.approx(expected)
    assert np.isnan(ndcg_by_cluster(query, np.arange(4.0), np.ones(4), 10)[0])


def test_reliability_is_what_was_promised_beside_what_came_true() -> None:
    found = reliability_of(np.array([0.95, 0.95, 0.15, 1.0]), np.array([True, False, False, True]))
    assert found.count.tolist() == [1, 3]
    assert found.true.tolist() == [0, pytest.approx(2 / 3)]
    assert found.error == pytest.approx(0.25 * 0.15 + 0.75 * abs(2.9 / 3 - 2 / 3))


def test_the_conclusion_names_the_winner_and_whether_it_is_chance() -> None:
    def said(low: float | None, **more: Any) -> str:
        told = {"chosen": "big", "baseline": "small", "against": "small", **more}
        gain = {"value": 0.02, "low": low, "high": None if low is None else 0.05}
        return conclusion(**told, gain=gain, criterion="macro_f1")

    assert "beats the baseline small, and chance does not explain it" in said(0.01)
    assert "chance may explain" in said(-0.01)
    assert "simple baseline small wins and is used" in said(-0.01, chosen="small", against="big")
    assert "on the test, no interval" in said(None) and "chance may explain" in said(None)
    assert "only learner" in conclusion("big", None, None, None, "macro_f1")


def test_whether_texts_are_relevant_is_judged_beside_the_bare_grade() -> None:
    rng = np.random.default_rng(3)
    query = np.repeat(np.arange(40), 10)
    grade = rng.integers(1, 4, 400).astype(float)
    guess = grade.clip(1.5, 2.5)  # a model that is not sure: grade 2 is relevant, its place is 0.5
    probability = np.where(grade >= 2, 0.9, 0.1)
    said = pa.table(
        {"grade": guess.astype(np.float32), "probability": probability.astype(np.float32),
         "relevant": grade >= 2},
        schema=JUDGED_RELEVANCE,
    )  # fmt: skip
    judge = TextJudge(
        "relevance", pairs(query.astype(str).tolist(), grade.tolist()), query, least_grade=1.0,
        cut=Cut(2.0, 1.0, 3.0), resamples=200,
    )  # fmt: skip
    verdict = judge.verdict(said)
    figures = verdict.figures
    assert figures["relevant_f1"].value == 1
    assert figures["brier"].value == pytest.approx(0.01, abs=1e-6)
    place = (guess - 1) / 2
    expected = np.mean((place - (grade >= 2)) ** 2)
    assert figures["brier_before"].value == pytest.approx(expected)
    assert figures["brier"].high < 0.011 < figures["brier_before"].low
    assert figures["calibration_error"].value == pytest.approx(0.1, abs=1e-6)
    assert verdict.reliability is not None
    assert figures["calibration_error"].value == pytest.approx(verdict.reliability.error)
    assert figures["calibration_error_before"].low > figures["calibration_error"].high
    bare = judge.verdict(said.select(["grade"]))
    assert set(bare.figures) == {"ndcg@10", "rmse"} and bare.reliability is None
