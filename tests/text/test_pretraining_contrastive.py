"""Contrastive pre-training on a toy shop: what is a negative, what is mined, and that it helps."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from raysys.retrieval.vector import VectorIndex
from raysys.text.encoder import Encoder
from raysys.text.models import open_model
from raysys.text.pretraining import (
    ContrastiveObjective,
    ContrastiveSettings,
    Pairs,
    PairSettings,
    contrastive,
    gather_pairs,
    tokenise,
)
from raysys.text.training import TrainingSettings, train
from tests.text.tiny_language import write_masked, write_shop


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_masked(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Pairs:
    ingest = write_shop(tmp_path_factory.mktemp("shop"))
    sources = {"sources": ("titles", "queries", "items"), "item": ("title",), "min_count": 1}
    return gather_pairs(PairSettings.model_validate({**sources, "held_out": 0.2}), ingest)


def _objective(bert: Path, pairs: Pairs, folder: Path, **settings: object) -> ContrastiveObjective:
    _, tokenizer = open_model(str(bert), where="model")
    tokens = tokenise([pairs.texts], tokenizer, folder / "tokens", longest=16, pieces=False)
    given = {"pairs": {"sources": ["titles"]}, "max_tokens": 32, **settings}
    return ContrastiveObjective(str(bert), pairs, tokens, ContrastiveSettings.model_validate(given))


def test_no_column_that_belongs_to_a_row_is_its_negative(bert: Path, pairs: Pairs, tmp_path: Path):
    objective = _objective(bert, pairs, tmp_path)
    objective.refresh(objective.build().eval(), 0)
    rows = np.arange(0, len(objective.rows), 7)
    batch = objective.collate(rows, np.random.default_rng(0))
    texts = np.unique(np.concatenate([pairs.left[objective.rows[rows]], _columns(objective, rows)]))
    known = {*zip(pairs.left.tolist(), pairs.right.tolist(), strict=True)}
    negative = ~(batch["positive"] | batch["ignored"])
    assert batch["positive"].sum(1).tolist() == [1] * len(rows)
    assert batch["ignored"].any() and negative.any(1).all()
    columns = texts[batch["columns"].numpy()]
    for at, row in enumerate(objective.rows[rows].tolist()):
        left, right = int(pairs.left[row]), int(pairs.right[row])
        assert columns[int(batch["positive"][at].nonzero())] == right
        for column in columns[negative[at].numpy()].tolist():
            assert (left, column) not in known and column not in (left, right)
            of = pairs.item[column]
            assert of == -1 or of not in (pairs.item[left], pairs.item[right])


def _columns(objective: ContrastiveObjective, rows: np.ndarray) -> np.ndarray:
    drawn = objective._drawn(rows, np.random.default_rng(0))
    return np.concatenate([objective.pairs.right[objective.rows[rows]], drawn])


def test_a_false_negative_moves_no_gradient(bert: Path, tmp_path: Path):
    found = [("queries", "milk", f"milk milk{at}", -1, at, 0) for at in (1, 2)]
    found.append(("queries", "soap", "soap soap1", -1, 3, 1))
    pairs = Pairs.of(found, 1e-9)
    objective = _objective(bert, pairs, tmp_path)
    batch = objective.collate(np.array([0]), np.random.default_rng(0))
    both = objective.collate(np.array([0, 1]), np.random.default_rng(0))
    module = objective.build().eval()
    # the two rows have nothing to be told apart from: clicked for the same query
    assert objective.loss(module, batch).item() == pytest.approx(0, abs=1e-6)
    loss = objective.loss(module, both)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert all(torch.isfinite(each.grad).all() for each in module.parameters()
               if each.grad is not None)  # fmt: skip


def test_the_loss_is_that_of_the_formula(bert: Path, pairs: Pairs, tmp_path: Path):
    objective = _objective(bert, pairs, tmp_path, temperature=0.1)
    rows = np.arange(6)
    batch = objective.collate(rows, np.random.default_rng(0))
    module = objective.build().eval()
    with torch.inference_mode():
        loss = float(objective.loss(module, batch))
        given = {k: batch[k] for k in ("input_ids", "attention_mask", "token_type_ids")}
        vectors = module(**given).numpy()
    share = np.bincount(pairs.right[objective.rows], minlength=len(pairs.texts))
    share = share / share.sum()
    columns = np.unique(pairs.right[objective.rows[rows]])
    expected = []
    for at, row in enumerate(objective.rows[rows].tolist()):
        scores = vectors[batch["columns"]] @ vectors[batch["left"][at]] / 0.1
        logits = scores - np.log(np.maximum(share[columns], 0.1 / len(pairs.texts)))
        counted = ~batch["ignored"][at].numpy()
        own = columns == pairs.right[row]
        expected.append(np.log(np.exp(logits[counted]).sum()) - logits[own][0])
    assert loss == pytest.approx(np.mean(expected), rel=1e-4)


def test_cosines_are_exact_where_the_rest_is_bfloat16(bert: Path, pairs: Pairs, tmp_path: Path):
    objective = _objective(bert, pairs, tmp_path, temperature=0.02)
    batch = objective.collate(np.arange(6), np.random.default_rng(0))
    vectors = objective.build().eval()(
        **{k: batch[k] for k in ("input_ids", "attention_mask", "token_type_ids")}
    )
    with torch.inference_mode():
        exact = objective.loss(lambda **_: vectors, batch)  # type: ignore[arg-type]
        with torch.autocast("cpu", torch.bfloat16):
            assert objective.loss(lambda **_: vectors, batch) == exact  # type: ignore[arg-type]


def test_what_is_mined_is_near_and_does_not_belong(bert: Path, pairs: Pairs, tmp_path: Path):
    negatives = {"count": 2, "among": 8, "skip": 2}
    objective = _objective(bert, pairs, tmp_path, hard_negatives=negatives)
    module = objective.build().eval()
    assert not len(objective._drawn(np.arange(5), np.random.default_rng(0)))
    objective.refresh(module, 1)
    encoder = Encoder.open(str(bert), 32, -1)
    vectors = encoder.encode(pairs.texts)
    known = {*zip(pairs.left.tolist(), pairs.right.tolist(), strict=True)}
    nearer = []
    for anchor, mined in zip(objective._anchors.tolist(), objective.mined, strict=True):
        source, left = divmod(anchor, len(pairs.texts))
        some = mined[mined >= 0]
        assert not any((left, int(text)) in known or text == left for text in some)
        rights = np.unique(pairs.right[objective.rows][pairs.source[objective.rows] == source])
        assert np.isin(some, rights).all()
        if len(some) and len(rights) > 40:
            nearer.append((vectors[some] @ vectors[left]).mean()
                          - (vectors[rights] @ vectors[left]).mean())  # fmt: skip
    assert len(nearer) > 20 and np.mean(np.array(nearer) > 0) > 0.95
    # a run that resumes has them again
    other = _objective(bert, pairs, tmp_path / "other", hard_negatives=negatives)
    other.restore(objective.state())
    rows = np.arange(12)
    first, second = (each.collate(rows, np.random.default_rng(3)) for each in (objective, other))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_same_is_mined_each_time_also_of_more_texts_than_are_compared(
    bert: Path, pairs: Pairs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(contrastive, "EXACT_UP_TO", 10)
    told: list[int] = []
    build = VectorIndex.build

    def noted(vectors: np.ndarray, **how: int) -> VectorIndex:
        told.append(how["threads"])
        return build(vectors, **how)

    monkeypatch.setattr(VectorIndex, "build", noted)
    mined = []
    for name in ("one", "other"):
        objective = _objective(bert, pairs, tmp_path / name)
        objective.refresh(objective.build().eval(), 0)
        mined.append(objective.mined)
    assert set(told) == {1}  # a few texts give the same by chance
    np.testing.assert_array_equal(*mined)


@pytest.mark.long
def test_recall_rises_on_pairs_that_were_held_out(bert: Path, pairs: Pairs, tmp_path: Path):
    steps = TrainingSettings(
        epochs=4, batch_size=32, learning_rate=2e-3, evaluate_every={"epochs": 1}
    )
    objective = _objective(bert, pairs, tmp_path, training=steps, temperature=0.1)
    before = objective.evaluate(objective.build().eval())
    fitted = train(objective, steps, tmp_path / "model")
    assert fitted.figures["recall_at_10"] > before["recall_at_10"] + 0.1
    assert fitted.figures["mrr"] > before["mrr"]
    assert {"recall_at_10_titles", "recall_at_10_queries", "recall_at_10_items"} <= set(before)
    assert (objective.mined >= 0).any()  # found anew before the second epoch
    encoder = Encoder.open(str(tmp_path / "model"), 16, -1)
    one, same, other = encoder.encode(["milk1 milk", "milk2 milk3", "soap2 soap3"])
    assert one @ same > one @ other


def test_recall_is_what_ranking_by_hand_gives(bert: Path, pairs: Pairs, tmp_path: Path):
    objective = _objective(bert, pairs, tmp_path)
    figures = objective.evaluate(objective.build().eval())
    vectors = Encoder.open(str(bert), 32, -1).encode(pairs.texts)
    recalls = []
    for source in (0, 1, 2):
        of = pairs.source == source
        held, rights = of & pairs.held_out, np.unique(pairs.right[of])
        for left in np.unique(pairs.left[held]):
            own = set(pairs.right[held & (pairs.left == left)].tolist())
            stands_aside = set(pairs.right[pairs.left == left].tolist()) | {int(left)}
            item = pairs.item[left]
            against = [int(t) for t in rights if int(t) not in stands_aside
                       and not (item >= 0 and pairs.item[t] == item)]  # fmt: skip
            scores = vectors[against] @ vectors[left]
            hits = [int((scores >= vectors[t] @ vectors[left]).sum()) < 10 for t in own]
            recalls.append(np.mean(hits))
    assert figures["recall_at_10"] == pytest.approx(np.mean(recalls), abs=0.02)


def test_workers_get_the_objective_and_make_the_same_batches(
    bert: Path, pairs: Pairs, tmp_path: Path
):
    objective = _objective(bert, pairs, tmp_path)
    objective.refresh(objective.build().eval(), 0)
    sent = pickle.dumps(objective)
    other = pickle.loads(sent)  # noqa: S301  as Ray does
    rows = np.arange(9)
    first, second = (each.collate(rows, np.random.default_rng(1)) for each in (objective, other))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert len(sent) < 100_000 + objective.mined.nbytes  # tokens stay in their files
