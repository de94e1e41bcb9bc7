"""Pseudo-labels: the suite, a case in which they must help, and one in which they must not."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from raysys.errors import UserError
from raysys.learners.text import make_text_learner
from raysys.learners.text_protocol import TextContext
from tests.learners.label_suite import LabelLearnerSuite, accuracy, row, table, titles

INNER = {"terms": [["words", 1, 1]], "costs": [10.0], "least": 1}


class TestPseudoLabels(LabelLearnerSuite):
    name = "pseudo_labels"
    settings = {"settings": {"costs": [3.0]}}

    # the fit needs labels to judge by
    test_no_validation_no_calibration = None


def bridged(n: int, seed: int, split: str, *, known: bool, late: bool) -> pa.Table:
    """Moods told by early words, by late words, or (in unlabelled texts) by one of each."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(n):
        mood = str(rng.choice(["negative", "positive"]))
        early, after = {"negative": ("bad", "lame"), "positive": ("good", "ace")}[mood]
        words = after if late else early if known else f"{early} {after}"
        noise = " ".join(rng.choice(["it", "was", "the", "and", "so"], 3))
        rows.append(row(f"{words} {noise}", mood if known else None, split))
    return table(rows)


def test_words_that_only_unlabelled_texts_have_are_learned(tmp_path) -> None:
    labelled = bridged(60, 0, "train", known=True, late=False)
    train = pa.concat_tables([labelled, bridged(400, 1, "train", known=False, late=False)])
    both = [bridged(80, seed, "validation", known=True, late=late)
            for seed, late in ((2, False), (3, True))]  # fmt: skip
    validation = pa.concat_tables(both)
    test = bridged(200, 4, "test", known=True, late=True)
    context = TextContext(tmp_path)
    plain = make_text_learner("tfidf_classifier", INNER, task="sentiment")
    settings = {"settings": INNER, "confidence": 0.6}
    sure = make_text_learner("pseudo_labels", settings, task="sentiment")
    alone = accuracy(plain.fit(train, validation, context).predict(test), test)
    model = sure.fit(train, validation, context)
    assert alone < 0.7 and accuracy(model.predict(test), test) > 0.95
    assert model.history[0]["pseudo_labels"] == 0 and model.history[-1]["pseudo_labels"] > 100
    assert min(entry["loss"] for entry in model.history[1:]) < model.history[0]["loss"]


def test_where_they_gain_nothing_none_are_used(tmp_path) -> None:
    """The unlabelled texts say the opposite of what they look like."""
    labelled = bridged(60, 0, "train", known=True, late=False)
    lies = bridged(200, 1, "train", known=False, late=False).to_pylist()
    for each in lies:  # good lame, bad ace
        early, after, *noise = each["text"].split()
        each["text"] = " ".join([{"good": "bad", "bad": "good"}[early], after, *noise])
    train = pa.concat_tables([labelled, table(lies)])
    validation = bridged(100, 3, "validation", known=True, late=True)
    context = TextContext(tmp_path)
    test = bridged(50, 4, "test", known=True, late=False)
    settings = {"settings": INNER, "confidence": 0.6}
    model = make_text_learner("pseudo_labels", settings, task="sentiment").fit(
        train, validation, context
    )
    plain = make_text_learner("tfidf_classifier", INNER, task="sentiment")
    assert len(model.history) > 1
    assert model.predict(test).equals(plain.fit(train, validation, context).predict(test))


def test_no_more_of_a_label_than_is_allowed(tmp_path) -> None:
    labelled = bridged(40, 0, "train", known=True, late=False)
    train = pa.concat_tables([labelled, bridged(300, 1, "train", known=False, late=False)])
    settings = {"settings": INNER, "confidence": 0.55, "most_per_label": 0.5, "rounds": 1}
    learner = make_text_learner("pseudo_labels", settings, task="sentiment")
    validation = bridged(60, 2, "validation", known=True, late=False)
    model = learner.fit(train, validation, TextContext(tmp_path))
    counts = [labelled["label"].to_pylist().count(mood) for mood in ("negative", "positive")]
    assert model.history[1]["pseudo_labels"] == sum(int(np.ceil(n / 2)) for n in counts)


def test_without_validation_labels_nobody_can_tell(tmp_path) -> None:
    learner = make_text_learner("pseudo_labels", {})
    with pytest.raises(UserError, match="no validation labels"):
        learner.fit(titles(60, "train", 0), titles(0, "validation", 0), TextContext(tmp_path))


@pytest.mark.parametrize(
    ("learner", "family"), [("tfidf_classifier", "baseline"), ("text_classifier", "transformer")]
)
def test_it_is_as_dear_as_what_it_wraps(learner: str, family: str) -> None:
    assert make_text_learner("pseudo_labels", {"learner": learner}).family == family


def test_a_copy_has_its_originals_label_and_takes_nobodys_place(tmp_path) -> None:
    labelled = bridged(20, 0, "train", known=True, late=False)
    rest = bridged(60, 1, "train", known=False, late=False)
    validation = bridged(60, 2, "validation", known=True, late=False)
    settings = {"settings": INNER, "confidence": 0.6, "most_per_label": 2.0}

    def added(copies: int) -> list[float]:
        train = pa.concat_tables([labelled, rest])
        order = np.repeat(np.arange(len(train)), copies + 1)
        methods = np.tile(["", *["word_swap"] * copies], len(train))
        train = train.take(order).append_column(
            "augmented", pa.array([method or None for method in methods], pa.string())
        )
        weights = pa.array(np.full(len(train), 1 / (copies + 1)), pa.float32())
        learner = make_text_learner("pseudo_labels", settings, task="sentiment")
        model = learner.fit(train.append_column("weight", weights), validation,
                            TextContext(tmp_path))  # fmt: skip
        return [entry["pseudo_labels"] for entry in model.history]

    assert added(2) == added(0)
