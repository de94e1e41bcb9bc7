"""Copies in `raysys text fit`: of train alone, labelled, weighed, and of no word that is judged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch
from scipy.sparse import csr_matrix

from raysys import schema
from raysys.config import parse_settings
from raysys.datasets.splits import plain
from raysys.errors import UserError
from raysys.learners import tfidf_classifier
from raysys.learners.label_model import Labelling
from raysys.learners.text_labels import LabelledTexts, LabelSet, read_training
from raysys.learners.text_reader import Losses, Outputs, ReadingObjective
from raysys.stages import text
from raysys.stages.text_augmentation import with_copies
from raysys.stages.text_settings import TextSettings
from raysys.storage import Workspace
from tests.stages import texts

SLIPS = {"methods": [{"kind": "spelling_noise", "strength": 0.3}, {"kind": "word_swap"}]}
QUICK = {"tfidf_classifier": {"costs": [3.0], "thresholds": {"choose": "none"}}}


def settings_for(task: str, augmentation: dict[str, Any] | None = None, **more: Any) -> Any:
    content = {
        "task": task,
        "sources": {"kind": "files", "paths": "a.csv", "text": "t", "label": "l"},
        "learners": {"tfidf_classifier": {}},
        "augmentation": SLIPS if augmentation is None else augmentation,
        **more,
    }
    return parse_settings(TextSettings, content, where="text.yaml")


def labelled(
    said: list[tuple[str, str | None]], split: str, rating: float | None = None
) -> pa.Table:
    rows = [
        {"text_id": f"{split}{n}", "text": t, "label": label, "rating": rating, "split": split}
        for n, (t, label) in enumerate(said)
    ]
    return pa.Table.from_pylist(rows, schema.LABELLED_TEXTS)


def splits(train: list[tuple[str, str | None]], test: str = "nothing like it") -> dict[str, Any]:
    return {
        "train": labelled(train, "train"),
        "validation": labelled([("green garden hose", "a")], "validation"),
        "test": labelled([(test, "a")], "test"),
    }


TRAIN: list[tuple[str, str | None]] = [
    ("comfortable leather sofa", "a"),
    ("woollen winter blanket", "b"),
    ("unknown thing without label", None),
    ("wooden kitchen table", "a"),
]


def test_copies_stand_behind_their_original_with_its_label_and_share_its_weight() -> None:
    tables = splits(TRAIN)
    found = with_copies(settings_for("classify"), tables)
    assert found["validation"] is tables["validation"] and found["test"] is tables["test"]
    rows = pl.DataFrame(found["train"])
    originals = rows.filter(pl.col("augmented").is_null())
    assert sorted(originals["text_id"]) == ["train0", "train1", "train2", "train3"]
    copies = rows.filter(pl.col("augmented").is_not_null())
    assert set(copies["augmented"]) == {"spelling_noise", "word_swap"}
    assert set(copies["text_id"]) == {"train0", "train1", "train3"}  # no label, no copy
    labels = dict(zip(originals["text_id"], originals["label"], strict=True))
    assert all(labels[key] == label for key, label in copies.select("text_id", "label").rows())
    weights = rows.group_by("text_id").agg(pl.col("weight").sum())
    assert weights["weight"].to_list() == pytest.approx([1.0] * 4)
    ids = rows["text_id"].to_list()
    assert ids == sorted(ids, key=lambda key: (key == "train2", key))


def test_off_is_off() -> None:
    tables = splits(TRAIN)
    assert with_copies(settings_for("classify", {}), tables) == tables


def test_no_copy_is_what_is_judged_or_what_another_example_says() -> None:
    swap = {"methods": [{"kind": "word_swap"}], "copies": 3}
    train: list[tuple[str, str | None]] = [("red sofa", "a"), ("blue rug", "b"), ("rug blue", "a")]
    made = pl.DataFrame(with_copies(settings_for("classify", swap), splits(train))["train"])
    copies = made.filter(pl.col("augmented").is_not_null())
    assert set(copies["text"]) == {"sofa red"}  # of the others each is said already
    judged = splits(train, test="Sofa  RED")
    made = pl.DataFrame(with_copies(settings_for("classify", swap), judged)["train"])
    assert made["augmented"].null_count() == made.height == 3


def test_the_pairs_of_a_query_have_the_same_copies() -> None:
    def pairs(split: str, queries: list[str]) -> pa.Table:
        rows = [
            {"query": q, "item_id": f"i{n}", "text": f"thing {n}", "grade": n, "weight": w}
            | {"split": split}
            for q in queries
            for n, w in ((0, 1.0), (1, 4.0), (2, 0.5))
        ]
        return pa.Table.from_pylist(rows, schema.LABELLED_PAIRS)

    tables = {
        "train": pairs("train", ["leather sofa", "woollen blanket"]),
        "validation": pairs("validation", ["garden hose"]),
        "test": pairs("test", ["sofa leather"]),
    }
    settings = settings_for("relevance", {**SLIPS, "copies": 2})
    rows = pl.DataFrame(with_copies(settings, tables)["train"])
    assert rows["weight"].sum() == pytest.approx(2 * 5.5)
    lists = rows.group_by("query", "augmented").agg(pl.col("item_id", "grade").sort())
    assert lists.height > 4
    assert all(items == ["i0", "i1", "i2"] for items in lists["item_id"].to_list())
    assert all(grades == [0, 1, 2] for grades in lists["grade"].to_list())
    assert "sofa leather" not in set(rows["query"])  # which the test asks
    assert set(rows["text"]) == {"thing 0", "thing 1", "thing 2"}


def test_two_queries_have_no_copy_in_common() -> None:
    """It would be one list with two grades an item."""
    rows = [
        {"query": q, "item_id": f"i{n}", "text": "t", "grade": g, "weight": 1.0, "split": s}
        for s, q, grades in (
            ("train", "red leather sofa", (3.0, 1.0)),
            ("train", "blue leather sofa", (0.0, 2.0)),
            ("validation", "garden hose", (0.0, 1.0)),
        )
        for n, g in enumerate(grades)
    ]
    table = pa.Table.from_pylist(rows, schema.LABELLED_PAIRS)
    tables = {s: table.filter(pc.equal(table["split"], s)) for s in ("train", "validation")}
    dropped = {"methods": [{"kind": "word_dropout", "strength": 0.3}], "copies": 5}
    found = pl.DataFrame(with_copies(settings_for("relevance", dropped), tables)["train"])
    copies = found.filter(pl.col("augmented").is_not_null())
    assert copies.height > 0  # "red sofa" is one query's alone
    grades = found.group_by("query", "item_id").agg(pl.col("grade").n_unique())
    assert grades["grade"].max() == 1


def test_a_rating_is_told_where_the_task_reads_it() -> None:
    said: list[tuple[str, str | None]] = [*TRAIN, ("grey garden bench", None)]
    tables = {**splits(TRAIN), "train": labelled(said, "train", rating=4.0)}
    for task, has in (("classify", False), ("sentiment", True)):
        made = pl.DataFrame(with_copies(settings_for(task), tables)["train"])
        copies = made.filter(pl.col("augmented").is_not_null())
        assert ("train4" in set(copies["text_id"])) is has


@pytest.mark.parametrize(
    ("task", "augmentation", "says"),
    [
        ("entities", SLIPS, "leave it out for entities"),
        ("classify", {"methods": [{"kind": "crop"}]}, "crop: a text has no history"),
    ],
)
def test_what_copies_would_spoil_is_refused(
    task: str, augmentation: dict[str, Any], says: str
) -> None:
    with pytest.raises(UserError, match=says):
        settings_for(task, augmentation)


def test_folds_by_query_and_copied_queries_do_not_go_together(tmp_path: Path) -> None:
    path = texts.write_judgements(tmp_path / "a.csv", 4)
    settings = texts.settings_of("relevance", path, {"relevance_blend": {}}, augmentation=SLIPS)
    with pytest.raises(UserError, match="relevance_blend judges its members") as refusal:
        text.run(settings, Workspace(tmp_path / "ws"))
    assert refusal.value.where == "augmentation"


def test_a_copy_is_in_the_fold_of_its_original_and_only_originals_are_judged() -> None:
    origin = np.array([0, 0, 0, 1, 2, 2, 3, 4, 4, 5, 6, 7])
    seen: list[list[tuple[Any, Any]]] = []

    def value(cost: float, folds: Any) -> float:
        seen.append(folds)
        return -cost

    settings = tfidf_classifier.TfidfSettings(folds=3)
    assert tfidf_classifier._best_by_folds((2.0, 1.0), value, origin, settings, 0) == 1.0
    judged = np.concatenate([fold for _, fold in seen[0]])
    assert sorted(judged) == [0, 3, 4, 6, 7, 9, 10, 11]
    for rest, fold in seen[0]:
        assert not set(origin[rest]) & set(origin[fold])
        assert len(rest) == np.isin(origin, origin[rest]).sum()


def many(n: int = 60) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    words = {
        "a": ["sofa", "couch", "divan", "cushion"],
        "b": ["spoon", "kettle", "saucer", "ladle"],
    }
    said: list[tuple[str, str | None]] = [
        (" ".join([*rng.choice(words[label], 3), f"number{n}"]), label)
        for n, label in enumerate(rng.choice(["a", "b"], n, p=[0.7, 0.3]).tolist())
    ]
    return {**splits(said[: n // 2]), "validation": labelled(said[n // 2 :], "validation")}


def test_a_learner_sees_weights_and_origins_and_the_shares_of_labels_stay() -> None:
    tables = many()
    copied = with_copies(settings_for("classify"), tables)
    labels, seen, _ = read_training(copied["train"], tables["validation"], "classify")
    bare = read_training(tables["train"], tables["validation"], "classify")[1]
    assert seen.original.sum() == len(bare) < len(seen)
    assert [t for t, o in zip(seen.texts, seen.original, strict=True) if o] == bare.texts
    assert np.bincount(seen.origin, seen.weight) == pytest.approx(np.ones(len(bare)))
    own = Labelling.of("classify", labels, seen).prior
    assert own == pytest.approx(Labelling.of("classify", labels, bare).prior)


@pytest.mark.parametrize(
    "more", [{}, {"weighting": "nb"}, {"classifier": "svm"}], ids=["logistic", "nb", "svm"]
)
def test_twice_at_half_the_weight_is_once(more: dict[str, Any]) -> None:
    rng = np.random.default_rng(0)
    rows = csr_matrix(rng.random((40, 12)) * (rng.random((40, 12)) < 0.4), dtype=np.float32)
    codes, again = rng.permutation(np.arange(40) % 3), np.repeat(np.arange(40), 2)
    half = np.full(80, 0.5, np.float32)
    learner = tfidf_classifier.TfidfClassifier(tfidf_classifier.TfidfSettings(**more))
    once = learner._linear(rows, codes, None, 3, 3.0)(rows)
    shared = learner._linear(rows[again], codes[again], half, 3, 3.0)(rows)
    full = learner._linear(rows[again], codes[again], None, 3, 3.0)(rows)
    assert shared == pytest.approx(once, abs=0.05)
    assert np.abs(full - once).max() > 0.2


def test_ratings_at_half_the_weight_are_once() -> None:
    rng = np.random.default_rng(0)
    rows = csr_matrix(rng.random((40, 12)), dtype=np.float32)
    rating, again = rng.random(40).astype(np.float32), np.repeat(np.arange(40), 2)

    def fitted(of: Any, weight: float) -> Any:
        n = len(of)
        texts = LabelledTexts(
            *(["t"] * n, np.full(n, -1), rating[of], np.full(n, weight, np.float32), of)
        )
        settings = tfidf_classifier.TfidfSettings()
        return tfidf_classifier._ridge(rows[of], texts, settings, 0)(rows)

    assert fitted(again, 0.5) == pytest.approx(fitted(np.arange(40), 1.0), abs=0.01)


@pytest.mark.long
def test_a_shops_texts_are_fitted_with_copies_that_can_be_looked_at(tmp_path: Path) -> None:
    path = texts.write_titles(tmp_path / "a.csv", 150)
    workspace = Workspace(tmp_path / "ws")
    manifest = text.run(texts.settings_of("classify", path, QUICK, augmentation=SLIPS), workspace)
    folder = workspace.text / "text-classify"
    rows, copies = (pl.read_parquet(folder / name) for name in ("rows.parquet", "copies.parquet"))
    told = manifest.figures["augmented"]
    assert told == dict(copies["augmented"].value_counts().rows()) and min(told.values()) > 50
    assert manifest.counts["train"] == (rows["split"] == "train").sum()  # copies are not counted
    train = rows.filter(pl.col("split") == "train")
    assert set(copies["text_id"]) <= set(train["text_id"])
    assert not set(plain(copies["text"])) & set(plain(rows["text"]))
    bare = text.run(texts.settings_of("classify", path, QUICK), workspace)
    assert bare.figures["augmented"] == {} and not (folder / "copies.parquet").exists()
    assert bare.figures["bundle"] != manifest.figures["bundle"]


def test_weights_count_in_the_loss_of_a_transformer() -> None:
    labels = LabelSet(("food > milk", "food > rice", "tools > saw"))
    outputs = Outputs(labels, "marginal", rated=True)
    losses = Losses(np.array([0.5, 1.0, 1.5], np.float32), 0.5, 0.5, 0.05)
    nothing: Any = None
    objective = ReadingObjective(
        *("", "", nothing, nothing, nothing, nothing, nothing), outputs, losses, 0.0, (0.0, 1.0)
    )
    torch.manual_seed(0)
    said, codes = torch.randn(4, len(outputs)), torch.tensor([0, 1, -1, 2])
    rating = torch.tensor([1.0, float("nan"), 2.0, 0.5])

    def loss(of: list[int], weight: list[float]) -> float:
        batch = {"input_ids": said[of], "attention_mask": said[of], "codes": codes[of]}
        batch |= {"rating": rating[of], "weight": torch.tensor(weight)}
        module: Any = lambda ids, mask: ids  # noqa: E731
        return float(objective.loss(module, batch))

    once = loss([0, 1, 2, 3], [1.0] * 4)
    assert loss([0, 0, 1, 2, 3], [0.5, 0.5, 1.0, 1.0, 1.0]) == pytest.approx(once)
    assert loss([0, 0, 1, 2, 3], [1.0] * 5) != pytest.approx(once)
    assert loss([2], [0.25]) == pytest.approx(loss([2], [1.0]))  # a mean, whatever the weights


@pytest.mark.long
@pytest.mark.parametrize(
    ("task", "learners"),
    [
        ("relevance", {"relevance_trees": {"vectors": None}}),
        ("sentiment", {"tfidf_classifier": {"costs": [1.0, 3.0]}}),
    ],
)
def test_the_other_tasks_are_fitted_with_copies(
    tmp_path: Path, task: str, learners: dict[str, Any]
) -> None:
    write = texts.write_judgements if task == "relevance" else texts.write_reviews
    settings = texts.settings_of(task, write(tmp_path / "a.csv"), learners, augmentation=SLIPS)
    workspace = Workspace(tmp_path / "ws")
    manifest = text.run(settings, workspace)
    copies = pl.read_parquet(workspace.text / f"text-{task}" / "copies.parquet")
    assert set(copies["augmented"]) == {"spelling_noise", "word_swap"}
    assert sum(manifest.figures["augmented"].values()) == copies.height
    column = "query" if task == "relevance" else "text"
    rows = pl.read_parquet(workspace.text / f"text-{task}" / "rows.parquet")
    assert not set(plain(copies[column])) & set(plain(rows[column]))
