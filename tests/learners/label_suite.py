"""One suite for every learner of labels: a new one inherits it, names itself, and is tested.

class TestMine(LabelLearnerSuite):
    name = "mine"
    settings = {"steps": 5}
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pytest

from raysys import schema
from raysys.errors import UserError
from raysys.learners.label_model import LabelModel
from raysys.learners.text import (
    TEXT_LEARNERS,
    load_text_model,
    make_text_learner,
    save_text_model,
)
from raysys.learners.text_protocol import PREDICTIONS, TextContext, TextLearner
from tests.synthetic import BRANDS, CATEGORIES

MOODS = {
    "negative": ("tinned", "lime", "egg", "bar"),
    "neutral": ("sliced", "ground", "plum", "white"),
    "positive": ("fresh", "organic", "sweet", "royal"),
}


def titles(n: int, split: str, seed: int) -> pa.Table:
    """Titles of the synthetic shop, each with its department and category as label."""
    rng = np.random.default_rng([seed, len(split)])
    rows = []
    for _ in range(n):
        category = str(rng.choice(list(CATEGORIES)))
        department, kinds = CATEGORIES[category]
        kind, brand = rng.choice(kinds.split()), rng.choice(BRANDS)
        told = f"{kind} {category if rng.random() < 0.7 else ''}" if rng.random() < 0.9 else ""
        rows.append(row(f"{brand} {told}".strip(), f"{department} > {category}", split))
    return table(rows)


def reviews(n: int, split: str, seed: int) -> pa.Table:
    """Reviews whose words tell the mood, mostly; ratings 1 to 5, of some rows unknown."""
    rng = np.random.default_rng([seed, len(split), 7])
    rows = []
    for _ in range(n):
        mood = str(rng.choice(list(MOODS), p=(0.2, 0.2, 0.6)))
        told = mood if rng.random() < 0.9 else str(rng.choice(list(MOODS)))
        words = [*rng.choice(MOODS[told], 2), rng.choice(BRANDS), rng.choice(list(CATEGORIES))]
        rating = {"negative": 1.5, "neutral": 3.0, "positive": 4.6}[mood] + rng.normal() / 5
        rows.append(
            row(" ".join(rng.permutation(words)), mood, split, float(np.clip(rating, 1, 5)))
        )
        if rng.random() < 0.1:
            rows[-1]["rating"] = None
    return table(rows)


def row(text: str, label: str | None, split: str, rating: float | None = None) -> dict[str, Any]:
    return {"text_id": "t", "text": text, "label": label, "rating": rating, "split": split}


def table(rows: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=schema.LABELLED_TEXTS)


def of_texts(*texts: str | None) -> pa.Table:
    return pa.table({"text": pa.array(texts, pa.string())})


def accuracy(predictions: pa.Table, truth: pa.Table) -> float:
    pairs = zip(predictions["label"].to_pylist(), truth["label"].to_pylist(), strict=True)
    return float(np.mean([said == right for said, right in pairs]))


class LabelLearnerSuite:
    """What holds for every learner of labels. Fits in this process."""

    name: ClassVar[str]
    settings: ClassVar[dict[str, Any]] = {}
    right: ClassVar[float] = 0.7
    """What share of titles it must label right; one in ten says nothing, and chance is a tenth."""

    @pytest.fixture(scope="class")
    @classmethod
    def more_settings(cls, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
        """Settings that need a folder; override where there are some."""
        return {}

    @pytest.fixture(scope="class")
    @classmethod
    def make(cls, more_settings: dict[str, Any]) -> Callable[..., TextLearner[Any]]:
        def make(task: Any = "classify", **changed: Any) -> TextLearner[Any]:
            settings = {**cls.settings, **more_settings, **changed}
            return make_text_learner(cls.name, settings, task=task)

        return make

    @pytest.fixture(scope="class")
    @classmethod
    def context(cls, tmp_path_factory: pytest.TempPathFactory) -> TextContext:
        return TextContext(tmp_path_factory.mktemp("scratch"), seed=3)

    @pytest.fixture(scope="class")
    @classmethod
    def classifier(cls, make: Callable[..., TextLearner[Any]], context: TextContext) -> LabelModel:
        return make().fit(titles(300, "train", 0), titles(150, "validation", 0), context)

    @pytest.fixture(scope="class")
    @classmethod
    def judge(cls, make: Callable[..., TextLearner[Any]], context: TextContext) -> LabelModel:
        train, validation = reviews(300, "train", 0), reviews(150, "validation", 0)
        return make("sentiment").fit(train, validation, context)

    def test_is_listed(self) -> None:
        assert self.name in TEXT_LEARNERS
        learner = make_text_learner(self.name, {**self.settings})
        assert learner.name == self.name and learner.family in {"transformer", "baseline"}
        assert set(learner.tasks) == {"classify", "sentiment"}
        with pytest.raises(UserError, match=f"{self.name} cannot learn entities"):
            make_text_learner(self.name, {}, task="entities")

    def test_an_unknown_setting_is_refused(self) -> None:
        with pytest.raises(UserError, match="threshold_"):
            make_text_learner(self.name, {"threshold_": 1})

    def test_labels_what_it_never_saw(self, classifier: LabelModel) -> None:
        test = titles(200, "test", 0)
        found = classifier.predict(test)
        assert found.schema == PREDICTIONS["classify"]
        assert accuracy(found, test) > self.right

    def test_tells_moods_and_ratings(self, judge: LabelModel) -> None:
        test = reviews(200, "test", 0)
        found = judge.predict(test)
        assert found.schema == PREDICTIONS["sentiment"]
        assert judge.labels.names == ("negative", "neutral", "positive")
        assert accuracy(found, test) > 0.7
        truth = test["rating"].to_numpy()
        known = np.isfinite(truth)
        error = (found["rating"].to_numpy() - truth)[known]
        assert np.sqrt((error**2).mean()) < 0.8 * truth[known].std()

    def test_choices_are_probabilities_best_first(self, classifier: LabelModel) -> None:
        for each in classifier.predict(titles(30, "test", 1)).to_pylist():
            shares = [choice["probability"] for choice in each["choices"]]
            assert len(shares) == 5 and shares == sorted(shares, reverse=True)
            assert 0 < sum(shares) <= 1 + 1e-6 and 0 <= each["probability"] <= 1
        all_of_them, _ = classifier.probabilities(titles(30, "test", 1)["text"].to_pylist())
        np.testing.assert_allclose(all_of_them.sum(axis=1), 1.0, rtol=1e-9)

    def test_a_text_is_the_same_alone(self, classifier: LabelModel) -> None:
        test = titles(20, "test", 2)
        together, _ = classifier.probabilities(test["text"].to_pylist())
        for at in (0, 7, 19):
            alone, _ = classifier.probabilities([test["text"][at].as_py()])
            np.testing.assert_allclose(alone[0], together[at], rtol=1e-4, atol=1e-6)

    @pytest.mark.parametrize("which", ["classifier", "judge"])
    def test_comes_back_from_a_folder_bit_for_bit(
        self, which: str, request: pytest.FixtureRequest, tmp_path: Path
    ) -> None:
        model = request.getfixturevalue(which)
        test = of_texts(*reviews(25, "test", 3)["text"].to_pylist(), "", "   ", None)
        save_text_model(self.name, model, tmp_path / "one")
        files = [path for path in tmp_path.rglob("*") if path.is_file()]
        assert not [p for p in files if re.search(r"\.(pkl|pickle|pt|pth|bin|joblib)$", p.name)]
        again = load_text_model(tmp_path / "one")
        assert isinstance(again, LabelModel) and again.task == model.task
        assert again.predict(test).equals(model.predict(test))
        save_text_model(self.name, again, tmp_path / "two")
        assert load_text_model(tmp_path / "two").predict(test).equals(model.predict(test))

    def test_threads_do_not_disturb_each_other(self, classifier: LabelModel) -> None:
        parts = [titles(8, "test", seed) for seed in range(6)]
        expected = [classifier.predict(part) for part in parts]
        with ThreadPoolExecutor(4) as pool:
            for found, right in zip(
                pool.map(classifier.predict, parts * 4), expected * 4, strict=True
            ):
                assert found.equals(right)

    def test_empty_texts_get_the_prior(self, judge: LabelModel) -> None:
        test = of_texts("", None, "  \n ", "fresh organic")
        found = judge.predict(test).to_pylist()
        top = [choice["label"] for choice in found[0]["choices"]]
        assert top[0] == found[0]["label"] == "positive"
        assert found[0] == found[1] == found[2]
        assert math.isclose(
            found[0]["choices"][0]["probability"], judge.labelling.prior.max(), rel_tol=1e-6
        )
        assert found[0]["rating"] == pytest.approx(judge.labelling.ratings[1], rel=1e-6)
        nothing = judge.predict(of_texts())
        assert len(nothing) == 0 and nothing.schema == PREDICTIONS["sentiment"]

    def test_a_very_long_text(self, judge: LabelModel) -> None:
        texts = ["fresh organic " * 7143, "x" * 100_000, "。" * 100_000, "\x00\ud7ff🙂"]
        found = judge.predict(of_texts(*texts))
        assert found["label"][0].as_py() == "positive" and len(found) == 4

    def test_same_seed_same_model_and_empty_texts_teach_nothing(
        self, judge: LabelModel, make: Callable[..., TextLearner[Any]], context: TextContext
    ) -> None:
        train = pa.concat_tables([reviews(300, "train", 0), table([row(" ", "negative", "train")])])
        model = make("sentiment").fit(train, reviews(150, "validation", 0), context)
        test = reviews(40, "test", 5)
        assert model.predict(test).equals(judge.predict(test))

    def test_a_label_with_one_example(
        self, make: Callable[..., TextLearner[Any]], context: TextContext
    ) -> None:
        train = pa.concat_tables(
            [titles(60, "train", 0), table([row("valley egg pasta", "other", "train")])]
        )
        model = make().fit(train, titles(30, "validation", 0), context)
        assert "other" in model.labels.names
        assert len(model.predict(titles(5, "test", 0))) == 5

    @pytest.mark.parametrize(
        ("labels", "said"),
        [
            (["a"] * 6, "only one label, 'a' in 6 texts"),
            ([None] * 6, "no labels in 0 texts"),
            (["a", " "] * 3, "only one label, 'a' in 3 texts"),
        ],
    )
    def test_nothing_to_tell_apart(
        self, labels: list[Any], said: str, make: Callable[..., TextLearner[Any]],
        context: TextContext,
    ) -> None:  # fmt: skip
        train = table([row("rye bread", label, "train") for label in labels])
        with pytest.raises(UserError, match=said):
            make().fit(train, train, context)

    def test_labels_outside_the_set(
        self, make: Callable[..., TextLearner[Any]], context: TextContext
    ) -> None:
        strange = table([row("rye bread", "nowhere", "validation")])
        with pytest.raises(UserError, match=r"split validation: 1 labels outside .*'nowhere'"):
            make().fit(titles(40, "train", 0), strange, context)
        bad = table([row("rye bread", mood, "train") for mood in ("positive", "angry")])
        with pytest.raises(UserError, match=r"split train: 1 labels outside .*'angry'"):
            make("sentiment").fit(bad, bad, context)

    def test_a_missing_column(
        self, make: Callable[..., TextLearner[Any]], context: TextContext
    ) -> None:
        with pytest.raises(UserError, match="no column 'label'"):
            make().fit(of_texts("rye bread"), titles(9, "validation", 0), context)

    def test_no_validation_no_calibration(
        self, make: Callable[..., TextLearner[Any]], context: TextContext
    ) -> None:
        model = make().fit(titles(60, "train", 0), titles(0, "validation", 0), context)
        assert model.labelling.calibration.temperature == 1.0
        assert model.predict(titles(5, "test", 0))["label"].null_count == 0
