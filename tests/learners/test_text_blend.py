"""The blend of text models: the suite over two baselines, and its weights."""

from __future__ import annotations

import numpy as np
import pytest

from raysys.errors import UserError
from raysys.learners.text import make_text_learner
from raysys.learners.text_blend import blend, greedy_weights
from raysys.learners.text_protocol import TextContext
from tests.learners.label_suite import LabelLearnerSuite, reviews, titles

WORDS = {"terms": [["words", 1, 1]], "costs": [3.0]}
LETTERS = {"terms": [["letters", 2, 4]], "costs": [3.0]}
MEMBERS = {
    "words": {"learner": "tfidf_classifier", "settings": WORDS},
    "letters": {"learner": "tfidf_classifier", "settings": LETTERS},
}


class TestTextBlend(LabelLearnerSuite):
    name = "text_blend"
    settings = {"members": MEMBERS}


def test_weights_are_those_of_the_least_loss() -> None:
    truth = np.random.default_rng(0).normal(size=4000)
    noise = np.random.default_rng(1).normal(size=(3, 4000))
    members = {"good": truth + noise[0], "twice": truth + 2 * noise[1], "worse": 9 * noise[2]}
    weights = greedy_weights(members, lambda mean: float(((mean - truth) ** 2).mean()), 50)
    # the best average of independent errors weighs by one over their variance: 4 to 1
    assert weights["good"] == pytest.approx(0.8, abs=0.05)
    assert sum(weights.values()) == pytest.approx(1) and min(weights.values()) > 0
    assert weights.get("worse", 0) <= 0.02


def test_a_member_that_adds_nothing_is_dropped(tmp_path) -> None:
    useless = {"learner": "tfidf_classifier", "settings": {"terms": [["letters", 1, 1]], "most": 1}}
    settings = {"members": {"useless": useless, "words": MEMBERS["words"]}}
    learner = make_text_learner("text_blend", settings)
    data = titles(300, "train", 0), titles(200, "validation", 0)
    model = learner.fit(*data, TextContext(tmp_path))
    assert model.weights == {"words": 1.0} and list(model.members) == ["words"]


def test_it_is_no_worse_than_its_best_member_where_weights_were_chosen(tmp_path) -> None:
    data = reviews(200, "train", 0), reviews(200, "validation", 0)
    context = TextContext(tmp_path)
    members = {
        name: ("tfidf_classifier", make_text_learner(
            "tfidf_classifier", each["settings"], task="sentiment").fit(*data, context))
        for name, each in MEMBERS.items()
    }  # fmt: skip
    texts = data[1]["text"].to_pylist()
    codes = members["words"][1].labels.codes(data[1]["label"].to_pylist(), where="")

    def loss(model) -> float:
        share, _ = model.probabilities(texts)
        return -float(np.log(share[np.arange(len(codes)), codes]).mean())

    together = blend(members, *data)
    assert loss(together) <= min(loss(model) for _, model in members.values()) + 1e-3
    other = make_text_learner("tfidf_classifier", WORDS).fit(
        titles(60, "train", 0), titles(20, "validation", 0), context
    )
    with pytest.raises(UserError, match="'strange' knows other labels than 'words'"):
        blend({**members, "strange": ("tfidf_classifier", other)}, *data)


def test_errors_name_the_member() -> None:
    settings = {"members": {"mine": {"learner": "nobody"}}}
    learner = make_text_learner("text_blend", settings)
    data = titles(60, "train", 0), titles(20, "validation", 0)
    with pytest.raises(UserError, match="no text learner 'nobody'"):
        learner.fit(*data, None)
    broken = {"members": {"words": {"learner": "tfidf_classifier", "settings": {"cost": 1}}}}
    with pytest.raises(UserError, match=r"text_blend\.members\.words: .*costs"):
        make_text_learner("text_blend", broken).fit(*data, None)
