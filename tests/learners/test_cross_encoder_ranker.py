"""The learner that reads what was asked for and an item together, and the second stage it makes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raysys.catalogue import Catalogue
from raysys.ensemble import BaseScores, EnsembleSettings, fit_ensemble
from raysys.errors import UserError
from raysys.features.batch import Batch
from raysys.features.examples import Examples
from raysys.learners import load_model, make_learner
from raysys.learners.baselines import ColumnModel
from raysys.learners.cross_encoder_ranker import CrossEncoderRankerModel
from raysys.learners.cross_encoder_ranker_settings import CrossEncoderRankerSettings
from raysys.learners.judged_pairs import judged_pairs
from raysys.learners.protocol import Context, Learner, Placeable, Reranker
from raysys.learners.ranker_pairs import with_copies
from raysys.learners.validation import NDCG
from raysys.stages.reranking import RerankerSettings, _weighed, fit_reranker
from raysys.text.items import item_texts
from raysys.text.pairs import Pairs
from tests.learners.suite import LearnerSuite
from tests.synthetic import CATEGORIES, write_examples
from tests.text.shop_pairs import judged_pairs as shop_pairs
from tests.text.tiny import write_tiny_bert

QUICK = {
    "text": ("title", "brand"),
    "max_tokens": 24,
    "history": 4,
    "training": {"epochs": 3, "max_steps": 16, "batch_size": 8, "learning_rate": 1e-3},
}

SEARCHED = {**QUICK, "training": {"max_steps": 8, "batch_size": 8, "learning_rate": 1e-3}}


class TestCrossEncoderRanker(LearnerSuite):
    name = "cross_encoder_ranker"
    settings = QUICK
    gain_over_random: ClassVar[float] = 0.02
    """A log without queries: all it has to go by is which words stand near which."""

    @pytest.fixture(scope="class")
    @classmethod
    def shop(cls, tmp_path_factory: pytest.TempPathFactory) -> tuple[Examples, Catalogue]:
        """Few candidates: each pair is read as often as there are tests."""
        folder = tmp_path_factory.mktemp("features")
        return write_examples(folder, n_requests=160, n_items=120, n_candidates=14)

    @pytest.fixture(scope="class")
    @classmethod
    def more_settings(cls, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
        return {"model": str(write_tiny_bert(tmp_path_factory.mktemp("bert")))}

    @pytest.mark.slow
    def test_on_ray_with_two_folds(
        self,
        make: Callable[..., Learner[Any]],
        train: Examples,
        context: Context,
        later: Batch,
        ray: None,
    ) -> None:
        """One fit will do: each fold is a Ray Train run of its own, which takes long to start."""
        there, here = make().fit(train, context), make().fit_local(train, context)
        np.testing.assert_allclose(there.score(later), here.score(later), rtol=1e-4, atol=1e-5)
        assert not [path for path in context.scratch.rglob("*") if path.is_file()]


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> tuple[Examples, Catalogue]:
    """Every other request searches for the category of something it then takes."""
    folder = tmp_path_factory.mktemp("searched")
    examples, catalogue = write_examples(folder, n_requests=200, n_items=100, n_candidates=20)
    category = np.array(list(CATEGORIES))[np.arange(100) % len(CATEGORIES)]
    for examples_of, requests_of in zip(
        examples.files("examples"), examples.files("requests"), strict=True
    ):
        rows = pl.read_parquet(examples_of, hive_partitioning=False)
        taken = dict(rows.filter(pl.col("label") > 0).select("request", "item").iter_rows())
        requests = pl.read_parquet(requests_of, hive_partitioning=False)
        query = [
            category[taken[n]] if n % 2 and n in taken else None
            for n in requests["request"].to_list()
        ]
        table = requests.with_columns(query=pl.Series(query, dtype=pl.String)).to_arrow()
        pq.write_table(table, requests_of)
    return examples, catalogue


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_tiny_bert(tmp_path_factory.mktemp("bert")))


@pytest.fixture(scope="module")
def context(shop: tuple[Examples, Catalogue], tmp_path_factory: pytest.TempPathFactory) -> Context:
    return Context(shop[1], tmp_path_factory.mktemp("scratch"), seed=3)


@pytest.fixture(scope="module")
def model(shop: tuple[Examples, Catalogue], bert: str, context: Context) -> CrossEncoderRankerModel:
    learner = make_learner("cross_encoder_ranker", {**SEARCHED, "model": bert})
    fitted = learner.fit_local(shop[0].with_folds(0, 1), context)
    assert isinstance(fitted, CrossEncoderRankerModel)
    return fitted


def test_queries_of_the_log_are_read_and_ranked_by(
    model: CrossEncoderRankerModel, shop: tuple[Examples, Catalogue]
) -> None:
    assert model.reads == "queries"
    batch = shop[0].with_folds(2).batch()
    assert batch.queries is not None
    scores = model.score(batch)
    for i, query in enumerate(batch.queries):
        of_request = scores[batch.offsets[i] : batch.offsets[i + 1]]
        assert query is not None or not of_request.any()  # it has no say
    asked = batch.take_requests(np.flatnonzero([q is not None for q in batch.queries]))
    judge = NDCG(asked)
    chance = np.mean([judge(np.random.default_rng(i).random(len(asked))) for i in range(9)])
    assert judge(model.score(asked)) > chance + 0.1


def test_several_queries_are_read_at_once(model: CrossEncoderRankerModel) -> None:
    assert isinstance(model, Reranker) and isinstance(model, Placeable)
    items = np.arange(12, dtype=np.int32)
    asked = [("milk", items), ("", items[:3]), ("rye bread", items[4:5]), ("x", items[:0])]
    found = model.pairs_of(asked)
    assert [len(each) for each in found] == [12, 3, 1, 0] and not found[1].any()
    np.testing.assert_allclose(found[0], model.pairs_of(asked[:1])[0], rtol=1e-5, atol=1e-6)
    assert model.pairs_of([]) == []


class Inverting:
    """A second stage that puts the best last."""

    def pairs_of(self, asked: Sequence[tuple[str, Any]]) -> list[Any]:
        return [np.arange(len(items), dtype=np.float32) for _, items in asked]


def test_a_weight_that_is_told_is_judged_as_it_is(shop: tuple[Examples, Catalogue]) -> None:
    last = shop[0].with_folds(2)
    batch = last.batch()
    popular = ColumnModel("item_purchases_28d", -1.0)
    scores = BaseScores.of(batch, 2, {"popular": popular.score(batch)})
    told = EnsembleSettings(methods=("average_standard",), rounds=1)
    ensemble = fit_ensemble(scores, {"popular": "baseline"}, told)
    fixed = RerankerSettings(top=20, weight=1.0)
    weight, figures = _weighed(Inverting(), fixed, last, scores, ensemble)
    assert weight == 1.0 and figures["ndcg10_after"] < figures["ndcg10_before"] - 0.02
    chosen = _weighed(Inverting(), RerankerSettings(top=20), last, scores, ensemble)
    assert chosen[0] < 1 and chosen[1]["ndcg10_after"] > figures["ndcg10_after"]


def test_the_second_stage_is_weighed_by_the_validation_fold(
    shop: tuple[Examples, Catalogue], bert: str, context: Context, tmp_path: Path
) -> None:
    examples = shop[0]
    last = examples.with_folds(2)
    batch = last.batch()
    popular = ColumnModel("item_purchases_28d", -1.0)
    scores = BaseScores.of(batch, 2, {"popular": popular.score(batch)})
    told = EnsembleSettings(methods=("average_standard",), rounds=1)
    ensemble = fit_ensemble(scores, {"popular": "baseline"}, told)
    settings = RerankerSettings(settings={**SEARCHED, "model": bert}, top=8)
    known = tmp_path / "reranker"
    found = fit_reranker(
        settings, examples.with_folds(0, 1), last, scores, ensemble, context, known
    )
    assert found.figures["requests"] > 10 and found.weight > 0
    assert found.figures["ndcg10_after"] > found.figures["ndcg10_before"]
    again = fit_reranker(settings, None, last, scores, ensemble, context, known)
    assert again.weight == found.weight and again.figures == found.figures
    fixed = settings.model_copy(update={"weight": 0.25})
    assert fit_reranker(fixed, None, last, scores, ensemble, context, known).weight == 0.25
    with pytest.raises(UserError, match="fitted no cross_encoder_ranker"):
        fit_reranker(settings, None, last, scores, ensemble, context, tmp_path / "none")
    wrong = RerankerSettings(learner="popular")
    with pytest.raises(UserError, match="reads no pairs"):
        fit_reranker(
            wrong, examples.with_folds(0, 1), last, scores, ensemble, context, tmp_path / "wrong"
        )


def test_judgements_are_learned_from(bert: str, context: Context, tmp_path: Path) -> None:
    path = tmp_path / "judged.parquet"
    table = shop_pairs(n_queries=30, per_query=6)
    pq.write_table(table, path)
    training = {"epochs": 4, "batch_size": 8, "learning_rate": 1e-3}
    quick = {**QUICK, "model": bert, "judgements": str(path), "training": training}
    nothing: Any = None  # no example is looked at
    model = make_learner("cross_encoder_ranker", quick).fit_local(nothing, context)
    assert isinstance(model, CrossEncoderRankerModel)
    said = model.scorer.scores(Pairs.of(table))[0]
    grade = table["grade"].to_numpy()
    assert said[grade == 3].mean() > said[grade == 2].mean() > said[grade == 1].mean()
    model.save(tmp_path)
    taken = {"fitted": str(tmp_path / "scorer"), "text": QUICK["text"], "max_tokens": 24}
    again = make_learner("cross_encoder_ranker", taken).fit_local(nothing, context)
    assert isinstance(again, CrossEncoderRankerModel)
    asked = [("whole milk", np.arange(20, dtype=np.int32))]
    np.testing.assert_array_equal(again.pairs_of(asked)[0], model.pairs_of(asked)[0])


def test_judgements_may_name_items(context: Context, tmp_path: Path) -> None:
    path = tmp_path / "judged.csv"
    path.write_text("query,item_id,grade,split\nmilk,i00000,2,train\nmilk,x,1,train\n"
                    "soap,i00008,0,validation\n")  # fmt: skip
    texts = item_texts(context.catalogue, ("title",))
    train, held_out = judged_pairs(str(path), texts, context.catalogue)
    assert train["text"].to_pylist() == [texts.distinct[texts.codes[0]]]
    assert held_out is not None and held_out["grade"].to_pylist() == [0]


def test_judgements_of_a_csv_are_read_as_they_are_meant(context: Context, tmp_path: Path) -> None:
    path = tmp_path / "judged.csv"
    texts = item_texts(context.catalogue, ("title",))
    path.write_text("query,text,grade,weight\n007,501,2,1\n42,milk,,1\n42,soap,1.5,2\n")
    found, _ = judged_pairs(str(path), texts, context.catalogue)
    assert found["query"].to_pylist() == ["007", "42"] and found["text"][0].as_py() == "501"
    assert found["grade"].to_pylist() == [2, 1.5] and found["weight"].to_pylist() == [1, 2]
    Pairs.of(found)
    pq.write_table(pl.DataFrame({"query": [7], "text": [501], "grade": [1]}).to_arrow(),
                   tmp_path / "judged.parquet")  # fmt: skip
    found, _ = judged_pairs(str(tmp_path / "judged.parquet"), texts, context.catalogue)
    assert Pairs.of(found).queries == ("7",)
    late = "".join(f"milk,soap,{at % 3}\n" for at in range(200))
    for content, said in (
        (f"query,text,grade\n{late}milk,soap,good\n", "a grade is no number: 'good' in row 201"),
        (
            "query,text,grade,weight\na,b,1,1\na,c,2,much\n",
            "a weight is no number: 'much' in row 2",
        ),
    ):
        path.write_text(content)
        with pytest.raises(UserError, match=said):
            judged_pairs(str(path), texts, context.catalogue)
    path.write_bytes(b"query,text,grade\n\xff\xfe,b,1\n")
    with pytest.raises(UserError, match="cannot be read"):
        judged_pairs(str(path), texts, context.catalogue)


@pytest.mark.parametrize(
    ("told", "telling"),
    [
        ({"fitted": "nowhere"}, "no fitted cross-encoder"),
        ({"judgements": "nowhere.csv"}, "no such file"),
        ({"judgements": __file__}, "not a Parquet or CSV file"),
    ],
)
def test_files_that_are_not_there_are_named(
    told: dict[str, Any], telling: str, shop: tuple[Examples, Catalogue], context: Context
) -> None:
    with pytest.raises(UserError, match=telling):
        make_learner("cross_encoder_ranker", told).fit_local(shop[0].with_folds(0), context)


def test_it_comes_back_with_a_catalogue_that_has_changed(
    model: CrossEncoderRankerModel, context: Context, tmp_path: Path
) -> None:
    model.save(tmp_path)
    fewer = Catalogue(context.catalogue.table.slice(2))
    again = load_model("cross_encoder_ranker", tmp_path, fewer)
    assert isinstance(again, CrossEncoderRankerModel)
    items = np.array([5, 9, 33], dtype=np.int32)
    np.testing.assert_allclose(
        again.pairs_of([("milk", items - 2)])[0], model.pairs_of([("milk", items)])[0], rtol=1e-5
    )


def test_requests_of_an_earlier_version_have_no_queries(
    shop: tuple[Examples, Catalogue], tmp_path: Path
) -> None:
    examples = shop[0].with_folds(0)
    for kind in ("examples", "requests"):
        for path in examples.files(kind):
            place = tmp_path / path.relative_to(examples.root)
            place.parent.mkdir(parents=True, exist_ok=True)
            table = pq.read_table(path, partitioning=None)
            pq.write_table(table.drop_columns("query") if kind == "requests" else table, place)
    assert replace(examples, root=tmp_path).batch().queries is None


def test_one_rate_moves_nothing_else_of_the_training() -> None:
    """What trainings in general begin with is not what this one does."""
    plain = make_learner("cross_encoder_ranker", {}).settings.training
    moved = make_learner("cross_encoder_ranker", {"training": {"warm_up": 0.3}}).settings.training
    assert moved == plain.model_copy(update={"warm_up": 0.3})
    assert (plain.epochs, plain.batch_size, plain.head_learning_rate) == (1, 8, 1e-3)
    again = make_learner("cross_encoder_ranker", {"training": moved.model_dump(mode="json")})
    assert again.settings.training == moved


def _listed() -> pa.Table:
    query = ["red sofa bed", "red sofa bed", "oak table", "oak table"]
    text = ["large red sofa", "garden hose", "round oak table", "garden hose"]
    columns = {"query": query, "text": text, "grade": pa.array([2, 0, 2, 0], pa.float32())}
    return pa.table({**columns, "weight": pa.array([None, 2, 1, 1], pa.float32())})


@pytest.mark.parametrize("column", ["query", "text"])
def test_copies_are_of_what_is_learned_and_say_nothing_that_is_judged(column: str) -> None:
    told = CrossEncoderRankerSettings(
        augmentation={"methods": [{"kind": "word_swap"}], "copies": 3}, augments=column
    )
    pairs = _listed()
    found, made = with_copies(pairs, None, told)
    again, _ = with_copies(pairs, None, told)
    assert found.equals(again), "seeded"
    copies = found.filter(found["augmented"].is_valid())
    assert made == {"word_swap": len(copies)} and len(copies) > 0
    assert not set(copies[column].to_pylist()) & set(pairs[column].to_pylist())
    other = "text" if column == "query" else "query"
    assert set(copies[other].to_pylist()) <= set(pairs[other].to_pylist())
    frame = pl.DataFrame(found.to_pandas())
    if column == "query":  # a copied list is as whole as its original
        sizes = frame.group_by("query").len()["len"].to_list()
        assert set(sizes) == {2}
    assert frame["weight"].sum() == pytest.approx(5.0)  # shared; what is not told weighs 1
    judged = copies.slice(0, 1).select(["query", "text", "grade"])
    apart, _ = with_copies(pairs, judged, told)
    left = apart.filter(apart["augmented"].is_valid())[column].to_pylist()
    assert judged[column][0].as_py() not in left
    plain, none = with_copies(pairs, None, CrossEncoderRankerSettings())
    assert plain is pairs and none == {}


@pytest.mark.long
def test_a_ranker_counts_its_copies(bert: str, context: Context, tmp_path: Path) -> None:
    pq.write_table(shop_pairs(n_queries=8, per_query=4), tmp_path / "judged.parquet")
    quick = {**SEARCHED, "model": bert, "judgements": str(tmp_path / "judged.parquet")}
    quick["training"] = {"max_steps": 2, "batch_size": 8}
    nothing: Any = None  # no example is looked at
    plain = make_learner("cross_encoder_ranker", quick).fit_local(nothing, context)
    methods = [{"kind": "spelling_noise"}]
    more = make_learner("cross_encoder_ranker", {**quick, "augmentation": {"methods": methods}})
    model = more.fit_local(nothing, context)
    assert plain.augmented == {} and 0 < model.augmented["spelling_noise"] <= 32
    (tmp_path / "model").mkdir()
    model.save(tmp_path / "model")
    again = load_model("cross_encoder_ranker", tmp_path / "model", context.catalogue)
    assert again.augmented == model.augmented
    asked = [("whole milk", np.arange(6, dtype=np.int32))]
    assert isinstance(model, CrossEncoderRankerModel) and isinstance(plain, type(model))
    assert not np.array_equal(model.pairs_of(asked)[0], plain.pairs_of(asked)[0])
