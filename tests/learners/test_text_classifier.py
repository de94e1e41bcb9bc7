"""The transformer that labels texts: the suite, levels, weights, and where it is told to look."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch

from raysys.errors import UserError
from raysys.learners.text import make_text_learner
from raysys.learners.text_classifier import _class_weights
from raysys.learners.text_labels import LabelledTexts, LabelSet
from raysys.learners.text_protocol import TextContext
from raysys.learners.text_reader import Outputs, Tokens
from raysys.text.models import open_model
from tests.learners.label_suite import LabelLearnerSuite, accuracy, of_texts, row, table, titles
from tests.text.tiny import write_tiny_bert

TRAINING = {"epochs": 6, "batch_size": 16, "learning_rate": 3e-3, "label_smoothing": 0.05}
PATHS = LabelSet(("x > a", "x > b", "y > c", "z"))


@pytest.mark.long
class TestTextClassifier(LabelLearnerSuite):
    name = "text_classifier"
    settings = {"training": TRAINING, "max_tokens": 24}
    right = 0.6

    @pytest.fixture(scope="class")
    @classmethod
    def more_settings(cls, tmp_path_factory):
        return {"model": str(write_tiny_bert(tmp_path_factory.mktemp("bert")))}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> str:
    return str(write_tiny_bert(tmp_path_factory.mktemp("tiny")))


@pytest.mark.parametrize("hierarchy", ["marginal", "heads"])
def test_levels_agree_whatever_they_are_learned_from(hierarchy) -> None:
    outputs = Outputs(PATHS, hierarchy, rated=True)
    assert len(outputs) == (5 if hierarchy == "marginal" else 8)
    said = torch.randn(7, len(outputs), generator=torch.Generator().manual_seed(0))
    top, whole = outputs.by_level(said)
    torch.testing.assert_close(whole.exp().sum(1), torch.ones(7))
    torch.testing.assert_close(top.exp().sum(1), torch.ones(7))
    if hierarchy == "marginal":
        summed = PATHS.levels[0].marginal(whole.exp().double().numpy())
        np.testing.assert_allclose(top.exp().numpy(), summed, rtol=1e-5)
    torch.testing.assert_close(outputs.rating(said), said[:, -1])


@pytest.mark.long
@pytest.mark.parametrize("hierarchy", ["marginal", "heads"])
def test_either_hierarchy_learns(hierarchy, tiny, tmp_path) -> None:
    settings = {"model": tiny, "training": TRAINING, "hierarchy": hierarchy}
    learner = make_text_learner("text_classifier", settings)
    context = TextContext(tmp_path)
    model = learner.fit(titles(300, "train", 0), titles(100, "validation", 0), context)
    test = titles(200, "test", 0)
    assert accuracy(model.predict(test), test) > 0.6
    assert not list(tmp_path.iterdir())  # nothing is left in the scratch folder


def test_rare_labels_weigh_more_and_the_mean_is_one() -> None:
    codes = np.array([0] * 90 + [1] * 10 + [-1] * 5)
    nothing, alike = np.full(105, np.nan, np.float32), np.ones(105, np.float32)
    texts = LabelledTexts(["t"] * 105, codes, nothing, alike, np.arange(105))
    for kind, ratio in (("none", 1), ("root", 3), ("balanced", 9)):
        weights = _class_weights(texts, 2, kind)
        assert weights[1] / weights[0] == pytest.approx(ratio, rel=1e-5)
        assert weights[codes[codes >= 0]].mean() == pytest.approx(1, rel=1e-5)


def test_tokens_lie_side_by_side(tiny) -> None:
    _, tokenizer = open_model(tiny, where="test")
    texts = ["rye bread", "", "milk " * 50]
    tokens = Tokens.of(texts, tokenizer, 8)
    assert tokens.lengths.tolist() == [4, 2, 8]
    batch = tokens.batch(np.array([2, 0]))
    expected = tokenizer(
        [texts[2], texts[0]], truncation=True, max_length=8, padding=True, return_tensors="pt"
    )
    assert torch.equal(batch["input_ids"], expected["input_ids"])
    assert torch.equal(batch["attention_mask"], expected["attention_mask"])
    assert sorted(np.concatenate(list(tokens.batches())).tolist()) == [0, 1, 2]


def test_frozen_layers_stay_and_upper_ones_move(tiny, tmp_path) -> None:
    settings = {"model": tiny, "training": {**TRAINING, "trainable_layers": 1}}
    learner = make_text_learner("text_classifier", settings)
    model = learner.fit(titles(60, "train", 0), titles(20, "validation", 0), TextContext(tmp_path))
    before, _ = open_model(tiny, where="test")
    after = model.reader.backbone
    lower, upper = zip(before.encoder.layer, after.encoder.layer, strict=True)
    for (old, new), same in ((lower, True), (upper, False)):
        pairs = list(zip(old.parameters(), new.parameters(), strict=True))
        assert all(torch.equal(a, b.cpu()) for a, b in pairs) == same
    embeddings = zip(before.embeddings.parameters(), after.embeddings.parameters(), strict=True)
    assert all(torch.equal(a, b.cpu()) for a, b in embeddings)


def test_a_model_from_nothing_reads_chinese(tmp_path) -> None:
    rows = [
        row(f"这个{noun}{verdict}", mood, "train")
        for noun in ("手机", "酒店", "衣服", "水果")
        for mood, verdicts in (("negative", ("很差", "失望")), ("positive", ("不错", "喜欢")))
        for verdict in verdicts
    ] * 10
    scratch = {"layers": 1, "width": 32, "vocabulary": 100, "tokenizer": "characters"}
    settings = {"scratch": scratch, "training": {**TRAINING, "learning_rate": 1e-2}}
    learner = make_text_learner("text_classifier", settings, task="sentiment")
    held = table(rows[:16])
    model = learner.fit(table(rows), held, TextContext(tmp_path))
    assert accuracy(model.predict(held), held) == 1.0
    assert model.max_tokens == 128 and model.predict(of_texts("酒店失望"))["label"][0].as_py()
    assert not list(tmp_path.iterdir())


def test_a_missing_model_is_a_users_error(tmp_path) -> None:
    learner = make_text_learner("text_classifier", {"model": str(tmp_path / "none")})
    data = titles(40, "train", 0), titles(20, "validation", 0)
    with pytest.raises(UserError, match=r"text_classifier.model: no model folder"):
        learner.fit(*data, TextContext(tmp_path))


@pytest.mark.long
def test_half_of_the_texts_without_label(tiny, tmp_path, caplog) -> None:
    """Their ratings teach all the same; a batch without any label has a loss."""
    rows = [
        row(
            f"{mood} bread", None if at % 4 else label, "train", 1.0 if label == "negative" else 5.0
        )
        for at in range(60)
        for mood, label in (("fresh", "positive"), ("lime", "negative"))
    ]
    settings = {"model": tiny, "training": {**TRAINING, "batch_size": 2, "epochs": 3}}
    learner = make_text_learner("text_classifier", settings, task="sentiment")
    held = table([row("fresh bread", "positive", "validation", 5.0)])
    with caplog.at_level(logging.INFO, "raysys"):
        model = learner.fit(table(rows), held, TextContext(tmp_path))
    found = model.predict(of_texts("fresh bread", "lime bread"))
    assert found["label"].to_pylist() == ["positive", "negative"]
    good, bad = found["rating"].to_pylist()
    assert good > 4 > 2 > bad
    assert "calibration error" in caplog.text and "rmse" in caplog.text
