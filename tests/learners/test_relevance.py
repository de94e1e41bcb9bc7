"""One suite for every relevance learner, on the synthetic shop with a tiny transformer."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GPT2Config, GPT2Model

from raysys.errors import UserError
from raysys.learners.bi_encoder import BiEncoderLearner, BiEncoderModel
from raysys.learners.cross_encoder import (
    CrossEncoderLearner,
    CrossEncoderModel,
    CrossEncoderSettings,
)
from raysys.learners.protocol import TextEncoder
from raysys.learners.relevance_blend import (
    RelevanceBlendLearner,
    RelevanceBlendModel,
    fit_weights,
    folds_by_query,
)
from raysys.learners.relevance_model import FILE, RelevanceModel, Relevant
from raysys.learners.relevance_trees import (
    RelevanceTreesLearner,
    RelevanceTreesSettings,
    Remembered,
)
from raysys.learners.text_protocol import (
    JUDGED_RELEVANCE,
    PREDICTIONS,
    TextContext,
    TextLearner,
    TextModel,
)
from raysys.text.bi_encoder import text_tokens
from raysys.text.encoder import Encoder
from raysys.text.pairs import Pairs, mean_ndcg
from tests.text.shop_pairs import judged_pairs
from tests.text.tiny import write_tiny_bert

LOSSES = ("cross_entropy", "ordinal", "mse", "margin", "listwise")
TRAINING = {"epochs": 6, "batch_size": 8, "learning_rate": 2e-3, "head_learning_rate": 1e-2}
TREES = {"n_estimators": 60, "factors": 4, "min_child_samples": 5, "learning_rate": 0.1}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_tiny_bert(tmp_path_factory.mktemp("tiny")))


@pytest.fixture(scope="module")
def table() -> pa.Table:
    return judged_pairs()


def of(table: pa.Table, split: str) -> pa.Table:
    return table.filter(pc.equal(table["split"], split))


def with_column(table: pa.Table, name: str, values: Any) -> pa.Table:
    at = table.schema.get_field_index(name)
    return table.set_column(at, table.schema.field(name), pa.array(values, table.schema.types[at]))


def figures(model: TextModel, table: pa.Table) -> tuple[float, float]:
    """Root mean squared error and NDCG@10."""
    said, pairs = model.predict(table)["grade"].to_numpy(), Pairs.of(table)
    error = float(np.sqrt(np.mean((said - pairs.grade) ** 2)))
    return error, mean_ndcg(said, pairs.grade - 1, pairs.query)


def saved(model: TextModel, folder: Path) -> Path:
    folder.mkdir()
    model.save(folder)
    return folder


class RelevanceSuite:
    """What holds for every relevance learner."""

    learner: ClassVar[type[TextLearner[Any]]]

    @staticmethod
    def settings(tiny: str) -> dict[str, Any]:
        raise NotImplementedError

    @pytest.fixture(scope="class")
    @classmethod
    def fit(cls, tiny: str, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., TextModel]:
        def fit(train: pa.Table, validation: pa.Table, **changed: Any) -> TextModel:
            made = cls.learner.settings_model(**{**cls.settings(tiny), **changed})
            context = TextContext(tmp_path_factory.mktemp("scratch"), seed=5)
            model = cls.learner(made).fit(train, validation, context)
            assert not [path for path in context.scratch.rglob("*") if path.is_file()]
            return model

        return fit

    @pytest.fixture(scope="class")
    @classmethod
    def model(cls, fit: Callable[..., TextModel], table: pa.Table) -> TextModel:
        return fit(of(table, "train"), of(table, "validation"))

    def test_says_what_it_is(self) -> None:
        assert self.learner.tasks == ("relevance",)
        assert self.learner.model_class.task == "relevance"
        assert self.learner.settings_model() is not None  # has defaults for all

    @pytest.mark.long
    def test_knows_more_of_new_queries_than_their_mean(
        self, model: TextModel, table: pa.Table
    ) -> None:
        held_out = of(table, "validation")
        error, ndcg = figures(model, held_out)
        grade, query = Pairs.of(held_out).grade, Pairs.of(held_out).query
        chance = np.mean(
            [
                mean_ndcg(np.random.default_rng(i).random(len(grade)), grade - 1, query)
                for i in range(9)
            ]
        )
        assert error < 0.93 * grade.std()
        assert ndcg > chance + 0.05

    def test_grades_of_the_judgements_units(self, model: TextModel, table: pa.Table) -> None:
        said = model.predict(of(table, "validation"))
        assert said.schema == PREDICTIONS["relevance"]
        assert said.num_rows == of(table, "validation").num_rows
        grades = said["grade"].to_numpy()
        assert grades.min() >= 1 and grades.max() <= 3

    def test_a_pair_scores_the_same_alone(self, model: TextModel, table: pa.Table) -> None:
        few = of(table, "validation").slice(0, 12)
        together = model.predict(few)["grade"].to_numpy()
        for at in (0, 5, 11):
            alone = model.predict(few.slice(at, 1))["grade"].to_numpy()
            np.testing.assert_allclose(alone, together[at : at + 1], rtol=1e-4, atol=1e-5)

    def test_comes_back_from_a_folder_bit_for_bit(
        self, model: TextModel, table: pa.Table, tmp_path: Path
    ) -> None:
        few = of(table, "validation")
        model.save(tmp_path)
        files = [path for path in tmp_path.rglob("*") if path.is_file()]
        unsafe = [p.name for p in files if re.search(r"\.(pkl|pickle|pt|pth|bin|joblib)$", p.name)]
        assert files and not unsafe
        again = self.learner.model_class.load(tmp_path)
        assert again.predict(few).equals(model.predict(few))
        second = tmp_path / "second"
        second.mkdir()
        again.save(second)
        assert self.learner.model_class.load(second).predict(few).equals(model.predict(few))

    def test_says_how_likely_a_text_is_relevant_once_that_was_calibrated(
        self, model: RelevanceModel, table: pa.Table, tmp_path: Path
    ) -> None:
        held = of(table, "validation")
        before = model.predict(held)
        scores, grades = model.judge(Pairs.of(held))
        np.testing.assert_array_equal(grades, before["grade"].to_numpy())
        assert (np.diff(grades[np.argsort(scores)]) >= 0).all()
        again = self.learner.model_class.load(saved(model, tmp_path / "bare"))
        assert isinstance(again, RelevanceModel) and again.relevant is None
        again.relevant = Relevant(2.0, 1.5, -1.0, 0.4, 0.2, 0.1, 0.2, 0.1)
        said = again.predict(held)
        assert said.schema == JUDGED_RELEVANCE and said["grade"].equals(before["grade"])
        likely = said["probability"].to_numpy()
        np.testing.assert_allclose(likely, 1 / (1 + np.exp(1.0 - 1.5 * scores)), rtol=1e-5)
        assert (said["relevant"].to_numpy() == (likely >= 0.4)).all()
        odd = again.predict(pa.table({"query": ["", "milk"], "text": ["milk", " "]}))
        assert odd.to_pylist() == [{"grade": 1.0, "probability": 0.0, "relevant": False}] * 2
        place = saved(again, tmp_path / "told")
        assert self.learner.model_class.load(place).predict(held).equals(said)
        (place / FILE).unlink()  # as a model of an earlier version
        assert self.learner.model_class.load(place).predict(held).equals(before)

    def test_empty_texts_get_the_lowest_grade(self, model: TextModel) -> None:
        odd = pa.table({"query": ["", "fresh milk", " ", "x"], "text": ["milk", "", " ", "\t"]})
        assert model.predict(odd)["grade"].to_pylist() == [1.0] * 4
        assert model.predict(odd.slice(0, 0)).num_rows == 0

    def test_reads_whatever_a_feed_holds(self, model: TextModel) -> None:
        odd = pa.table(
            {
                "query": ["a" * 100_000, "牛奶", "fresh milk", "🥛 <b>&amp;", "!!!"],
                "text": ["milk", "acme 牛奶 250 ml", "milk " * 20_000, "\ufffd\u0000", "???"],
            }
        )
        grades = model.predict(odd)["grade"].to_numpy()
        assert np.isfinite(grades).all()

    @pytest.mark.long
    def test_same_seed_same_model(
        self, model: TextModel, fit: Callable[..., TextModel], table: pa.Table
    ) -> None:
        again = fit(of(table, "train"), of(table, "validation"))
        held_out = of(table, "validation")
        assert again.predict(held_out).equals(model.predict(held_out))

    def test_threads_do_not_disturb_each_other(self, model: TextModel, table: pa.Table) -> None:
        parts = [of(table, "validation").slice(at, 8) for at in range(0, 32, 8)]
        expected = [model.predict(part) for part in parts]
        with ThreadPoolExecutor(4) as pool:
            for said, right in zip(pool.map(model.predict, parts), expected, strict=True):
                assert said.equals(right)

    def test_one_grade_is_a_users_error(
        self, fit: Callable[..., TextModel], table: pa.Table
    ) -> None:
        flat = with_column(table, "grade", np.full(len(table), 2))
        with pytest.raises(UserError, match="all pairs have the grade 2"):
            fit(of(flat, "train"), of(flat, "validation"))

    def test_no_pairs_is_a_users_error(
        self, fit: Callable[..., TextModel], table: pa.Table
    ) -> None:
        with pytest.raises(UserError, match="no pair"):
            fit(table.slice(0, 0), table.slice(0, 0))

    @pytest.mark.long
    def test_no_validation(self, fit: Callable[..., TextModel], table: pa.Table) -> None:
        model = fit(of(table, "train"), table.slice(0, 0))
        assert np.isfinite(model.predict(of(table, "validation"))["grade"].to_numpy()).all()


class TestCrossEncoder(RelevanceSuite):
    learner = CrossEncoderLearner

    @staticmethod
    def settings(tiny: str) -> dict[str, Any]:
        return {"model": tiny, "loss": "mse", "training": {**TRAINING, "epochs": 8}}

    @pytest.mark.long
    @pytest.mark.parametrize("loss", LOSSES)
    def test_every_loss_learns(
        self, fit: Callable[..., TextModel], table: pa.Table, loss: str
    ) -> None:
        model = fit(of(table, "train"), of(table, "validation"), loss=loss)
        assert figures(model, of(table, "train"))[1] > 0.85
        assert isinstance(model, CrossEncoderModel) and model.fitted is not None
        assert set(model.fitted.figures) == {"rmse", "ndcg10"}

    def test_losses_by_list_need_lists(
        self, fit: Callable[..., TextModel], table: pa.Table
    ) -> None:
        alone = with_column(table, "query", [f"q{at}" for at in range(len(table))])
        with pytest.raises(UserError, match="no query has pairs of different grades"):
            fit(of(alone, "train"), of(alone, "validation"), loss="listwise")

    @pytest.mark.long
    def test_a_pair_without_weight_does_not_teach(
        self, fit: Callable[..., TextModel], table: pa.Table
    ) -> None:
        train = of(table, "train")
        grade = np.random.default_rng(0).permutation(train["grade"].to_numpy())
        wrong = with_column(with_column(train, "grade", grade), "weight", np.zeros(len(train)))
        here, there = (
            fit(each, of(table, "validation"), training={**TRAINING, "epochs": 1})
            for each in (train, pa.concat_tables([train, wrong]))
        )
        said = [each.predict(of(table, "validation")) for each in (here, there)]
        assert said[0].equals(said[1])


class TestBiEncoder(RelevanceSuite):
    learner = BiEncoderLearner

    @staticmethod
    def settings(tiny: str) -> dict[str, Any]:
        return {"model": tiny, "training": TRAINING}

    @pytest.mark.long
    @pytest.mark.parametrize("loss", LOSSES)
    def test_every_loss_learns(
        self, fit: Callable[..., TextModel], table: pa.Table, loss: str
    ) -> None:
        model = fit(of(table, "train"), of(table, "validation"), loss=loss)
        assert figures(model, of(table, "train"))[1] > 0.85

    def test_places_items_and_queries_in_one_space(
        self, model: BiEncoderModel, table: pa.Table
    ) -> None:
        texts = table["text"].to_pylist()
        placed = model.place(texts)
        assert isinstance(placed, TextEncoder)
        assert placed.item_vectors.shape == (len(texts), 32)
        np.testing.assert_allclose(np.linalg.norm(placed.item_vectors, axis=1), 1, rtol=1e-5)
        assert not placed.encode([""]).any()
        few = of(table, "validation").slice(0, 8)  # one query
        vectors = placed.encode([few["query"][0].as_py()])
        cosines = model.encode(few["text"].to_pylist()) @ vectors[0]
        said = model.predict(few)["grade"].to_numpy()
        np.testing.assert_array_equal(np.argsort(said), np.argsort(cosines))

    def test_cosines_are_exact_where_the_rest_is_bfloat16(
        self, model: BiEncoderModel, table: pa.Table
    ) -> None:
        module = model.vectors.encoder
        texts = table["text"].to_pylist()[:40]
        tokens = text_tokens(model.vectors.tokenizer, texts, 16).batch(np.arange(40))
        given = [tokens[0][:8], tokens[1][:8], *tokens]
        pairs = torch.zeros(2, 1, dtype=torch.int64)
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            _, cosines, _ = module(*given, pairs)
            asked, known = module.embed(*given[:2]), module.embed(*given[2:])
        wanted = asked.double() @ known.double().T
        torch.testing.assert_close(cosines.double(), wanted, atol=1e-6, rtol=0)

    @pytest.mark.long
    def test_learns_from_a_teacher_what_the_grades_do_not_say(
        self, fit: Callable[..., TextModel], table: pa.Table, tiny: str, tmp_path: Path
    ) -> None:
        """A saved teacher, heavy: the student's order comes near the teacher's."""
        train, validation = of(table, "train"), of(table, "validation")
        context = TextContext(tmp_path / "scratch", seed=1)
        settings = CrossEncoderSettings(**TestCrossEncoder.settings(tiny))
        teacher = CrossEncoderLearner(settings).fit(train, validation, context)
        (tmp_path / "teacher").mkdir()
        teacher.save(tmp_path / "teacher")
        pairs = Pairs.of(train)
        right = teacher.scorer.scores(pairs)[0]
        told = fit(train, validation, teacher=str(tmp_path / "teacher"), distillation=20.0)
        alone = fit(train, validation)
        assert isinstance(told, BiEncoderModel) and isinstance(alone, BiEncoderModel)

        def distance(model: BiEncoderModel) -> float:
            gap = model.scores(pairs) - right
            mean = np.bincount(pairs.query, gap) / np.bincount(pairs.query)
            return float(np.mean((gap - mean[pairs.query]) ** 2))

        assert distance(told) < 0.8 * distance(alone)

    @pytest.mark.long
    def test_a_teacher_may_be_fitted_first(
        self, fit: Callable[..., TextModel], table: pa.Table, tiny: str
    ) -> None:
        one = {"model": tiny, "training": {**TRAINING, "epochs": 1}}
        model = fit(of(table, "train"), of(table, "validation"), teacher=one)
        assert np.isfinite(model.predict(table)["grade"].to_numpy()).all()

    def test_no_teacher_in_a_folder(
        self, fit: Callable[..., TextModel], table: pa.Table, tmp_path: Path
    ) -> None:
        with pytest.raises(UserError, match="no saved cross-encoder"):
            fit(of(table, "train"), of(table, "validation"), teacher=str(tmp_path))


class TestTrees(RelevanceSuite):
    learner = RelevanceTreesLearner

    @staticmethod
    def settings(tiny: str) -> dict[str, Any]:
        return {**TREES, "vectors": tiny}

    def test_ranks(self, fit: Callable[..., TextModel], table: pa.Table) -> None:
        model = fit(of(table, "train"), of(table, "validation"), objective="lambdarank")
        assert figures(model, of(table, "validation"))[1] > 0.85

    def test_validation_without_an_order_stops_nobody(
        self, fit: Callable[..., TextModel], table: pa.Table
    ) -> None:
        """It finds every number of trees as good: not the first of them is the best."""
        train, held = of(table, "train"), of(table, "validation")
        one = held.filter(pc.equal(held["grade"], held["grade"][0]))
        trees = [
            fit(train, rows, objective="lambdarank").booster.current_iteration()  # type: ignore[attr-defined]
            for rows in (one, held.slice(0, 0))
        ]
        assert trees[0] == trees[1] > 1

    def test_vectors_of_any_family(self, tiny: str, tmp_path: Path) -> None:
        """A GPT's layers cannot be run one by one; nor need they be: none is trained."""
        folder = tmp_path / "gpt"
        shutil.copytree(tiny, folder)
        torch.manual_seed(0)
        wide = {"vocab_size": 200, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64}
        GPT2Model(GPT2Config(**wide)).save_pretrained(folder)
        texts = ["dairy milk", "frozen pizza"]
        found = Remembered(str(folder), 16)(texts)
        np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-5)
        known = Encoder.open(tiny, 16, 1)
        known.settle()
        np.testing.assert_array_equal(Remembered(tiny, 16)(texts), known.encode(texts))
        with pytest.raises(UserError, match=r"relevance_trees\.vectors"):
            Remembered(str(tmp_path / "nowhere"), 16)

    def test_without_vectors(self, fit: Callable[..., TextModel], table: pa.Table) -> None:
        model = fit(of(table, "train"), of(table, "validation"), vectors=None)
        assert not [name for name in model.importance() if name.startswith("cosine_t")]  # type: ignore[attr-defined]
        assert figures(model, of(table, "validation"))[1] > 0.85


class TestBlend(RelevanceSuite):
    learner = RelevanceBlendLearner

    @staticmethod
    def settings(tiny: str) -> dict[str, Any]:
        few = {"model": tiny, "training": {**TRAINING, "epochs": 3}}
        return {
            "members": [
                {"learner": "relevance_trees", "settings": {**TREES, "vectors": None}},
                {"learner": "bi_encoder", "settings": few},
            ],
            "folds": 2,
            "trees": {**TREES, "vectors": None},
        }

    @pytest.mark.long
    @pytest.mark.parametrize("combine", ["ridge", "trees"])
    def test_other_combinations(
        self, fit: Callable[..., TextModel], table: pa.Table, combine: str, tmp_path: Path
    ) -> None:
        held_out = of(table, "validation")
        model = fit(of(table, "train"), held_out, combine=combine)
        assert figures(model, held_out)[1] > 0.8
        model.save(tmp_path)
        assert RelevanceBlendModel.load(tmp_path).predict(held_out).equals(model.predict(held_out))

    def test_members_speak_of_queries_they_never_saw(
        self, model: RelevanceBlendModel, table: pa.Table
    ) -> None:
        """What the combination learned from is what the fold's model says, and no other."""
        train = of(table, "train")
        pairs = Pairs.of(train)
        fold = folds_by_query(pairs, 2, 5)
        assert model.out_of_fold is not None
        for member, models in enumerate(model.members):
            for number, each in enumerate(models):
                rows = np.flatnonzero(fold == number)
                said = each.predict(train.take(rows))["grade"].to_numpy()
                np.testing.assert_array_equal(said, model.out_of_fold[member, rows])

    def test_more_folds_than_queries(self, fit: Callable[..., TextModel], table: pa.Table) -> None:
        with pytest.raises(UserError, match="cannot be cut into 20 folds"):
            fit(table.slice(0, 40), table.slice(0, 0), folds=20)

    def test_unknown_settings_of_a_member_are_refused(
        self, fit: Callable[..., TextModel], table: pa.Table
    ) -> None:
        members = [{"learner": "bi_encoder", "settings": {"los": "mse"}}]
        with pytest.raises(UserError, match="los"):
            fit(of(table, "train"), of(table, "validation"), members=members)


def test_folds_keep_queries_whole_and_alike() -> None:
    pairs = Pairs.of(judged_pairs())
    fold = folds_by_query(pairs, 3, 0)
    for rows in pairs.lists():
        assert len(np.unique(fold[rows])) == 1
    sizes = [len(np.unique(pairs.query[fold == k])) for k in range(3)]
    assert max(sizes) - min(sizes) <= 1 and sum(sizes) == 40


def test_weights_by_hand() -> None:
    one, two = np.array([0.0, 1, 2, 3], np.float32), np.array([1.0, 0, 1, 0], np.float32)
    grade, weight = 2 * one - two + 5, np.ones(4, np.float32)
    said = np.stack([one, two])
    found = fit_weights(said, grade, weight, ridge=0, non_negative=False)
    np.testing.assert_allclose(found, [2, -1, 5], atol=1e-9)
    found = fit_weights(said, grade, weight, ridge=0, non_negative=True)
    slope = np.cov(one, grade)[0, 1] / np.var(one, ddof=1)  # the second is left out
    np.testing.assert_allclose(found, [slope, 0, grade.mean() - slope * one.mean()], atol=1e-9)


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(1, 3, width=32), st.integers(1, 3)), min_size=3, max_size=30))
def test_non_negative_weights_never_lose_to_the_mean(rows: list[tuple[float, int]]) -> None:
    said, grade = (np.array(each, dtype=np.float32) for each in zip(*rows, strict=True))
    weight = np.ones(len(grade), np.float32)
    found = fit_weights(said[None], grade, weight, ridge=0, non_negative=True)
    assert found[0] >= 0
    error = np.mean((said * found[0] + found[1] - grade) ** 2)
    assert error <= grade.var() + 1e-4


def test_a_language_without_a_stemmer_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no stemmer for it; there are .*english"):
        RelevanceTreesSettings(language="chinese")
