"""The TF-IDF baseline: the suite, its choices, and Chinese."""

from __future__ import annotations

import numpy as np
import pytest

from raysys.errors import UserError
from raysys.learners.text import make_text_learner
from raysys.learners.text_protocol import TextContext
from raysys.learners.text_terms import View, fit_views, language_of, plain
from tests.learners.label_suite import (
    LabelLearnerSuite,
    accuracy,
    of_texts,
    reviews,
    row,
    table,
    titles,
)


class TestTfidfClassifier(LabelLearnerSuite):
    name = "tfidf_classifier"
    settings = {"costs": (3.0,)}


@pytest.mark.long
@pytest.mark.parametrize("weighting", ["tfidf", "nb"])
@pytest.mark.parametrize("classifier", ["logistic", "svm"])
@pytest.mark.parametrize("make", [titles, reviews])
def test_every_kind_learns(weighting, classifier, make, tmp_path) -> None:
    settings = {"weighting": weighting, "classifier": classifier, "costs": (0.3, 3.0)}
    task = "classify" if make is titles else "sentiment"
    learner = make_text_learner("tfidf_classifier", settings, task=task)
    model = learner.fit(make(300, "train", 0), make(150, "validation", 0), TextContext(tmp_path))
    test = make(200, "test", 0)
    assert accuracy(model.predict(test), test) > 0.7


def chinese(n: int, split: str) -> object:
    rng = np.random.default_rng(len(split))
    words = {"negative": ("很差", "失望", "退货"), "positive": ("不错", "喜欢", "满意")}
    rows = []
    for _ in range(n):
        mood = str(rng.choice(list(words)))
        noun, verdict = rng.choice(("手机", "酒店", "衣服", "水果")), rng.choice(words[mood])
        rows.append(row(f"这个{noun}{verdict}，朋友也说{noun}。", mood, split))
    return table(rows)


@pytest.mark.long
def test_chinese_is_read_by_characters_and_words(tmp_path) -> None:
    learner = make_text_learner("tfidf_classifier", {"costs": (1.0,)}, task="sentiment")
    model = learner.fit(chinese(200, "train"), chinese(80, "validation"), TextContext(tmp_path))
    assert [view.kind for view in model.views] == ["characters", "jieba_words"]
    assert {"失望", "酒店"} <= set(model.views[1].terms)
    test = chinese(100, "test")
    assert accuracy(model.predict(test), test) == 1.0
    assert model.labels.names == ("negative", "positive")


def test_the_language_is_that_of_most_letters() -> None:
    assert language_of(["新款 iPhone 手机壳 透明防摔"]) == "solid"
    assert language_of(["iPhone 15 手机 case with ring", "red shoes"]) == "spaced"
    assert language_of(["ของใช้ในบ้าน"]) == language_of(["とても良い"]) == "solid"
    assert language_of([]) == language_of(["123 !"]) == "spaced"


def test_plain_makes_like_things_equal() -> None:
    assert plain("  ＡＢＣ１２３\n x\u3000Y ") == "abc123 x y"


def test_rows_have_length_one_and_rare_terms_weigh_more() -> None:
    texts = ["red shoes", "red hat", "red coat"]
    found = View.fit("words", 1, 1, texts, least=1, most=10)
    assert found is not None
    view, rows = found
    assert view.terms == ("coat", "hat", "red", "shoes")
    np.testing.assert_allclose(rows.multiply(rows).sum(axis=1), 1.0, rtol=1e-6)
    dense = rows.toarray()
    assert dense[0, 3] > dense[0, 2] > 0 and dense[0, 0] == 0
    np.testing.assert_array_equal(view.matrix(texts).toarray(), dense)
    assert view.matrix(["unheard of"]).nnz == 0


def test_terms_of_few_texts_are_kept_rather_than_none() -> None:
    views, rows = fit_views(["one", "two"], (("words", 1, 1),), least=2, most=10)
    assert views[0].terms == ("one", "two") and rows.shape == (2, 2)
    with pytest.raises(UserError, match="no training text has a word"):
        fit_views([" ", ""], (("words", 1, 1),), least=1, most=10)


def test_rows_without_label_teach_the_rating_alone(tmp_path) -> None:
    train = reviews(300, "train", 0).to_pylist()
    for at, each in enumerate(train):
        if at % 2:
            each["label"] = None
    learner = make_text_learner("tfidf_classifier", {"costs": (1.0,)}, task="sentiment")
    context = TextContext(tmp_path)
    model = learner.fit(table(train), reviews(100, "validation", 0), context)
    only = learner.fit(table(train[::2]), reviews(100, "validation", 0), context)
    texts = of_texts("fresh organic", "tinned lime")
    assert not model.predict(texts)["rating"].equals(only.predict(texts)["rating"])
    assert model.predict(texts)["label"].to_pylist() == ["positive", "negative"]


def test_a_stated_precision_is_kept(
    tmp_path,
) -> None:
    """What is said is right that often; where the category is unsure its department may be."""
    settings = {"choose": "precision", "precision": 0.9, "least": 5}
    train, validation = titles(300, "train", 0), titles(300, "validation", 0)
    learner = make_text_learner("tfidf_classifier", {"costs": (3.0,), "thresholds": settings})
    model = learner.fit(train, validation, TextContext(tmp_path))
    said = model.predict(validation)["label"].to_pylist()
    for name in {label for label in said if label is not None}:
        right = [
            (truth + " > ").startswith(label + " > ")
            for label, truth in zip(said, validation["label"].to_pylist(), strict=True)
            if label == name
        ]
        assert np.mean(right) >= 0.9
    assert None in said or any(" > " not in label for label in said)
