"""The learner of the next item in the shop's protocol."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pytest

from raysys.catalogue import Catalogue
from raysys.errors import UserError
from raysys.features.examples import Examples
from raysys.learners import load_model, make_learner
from raysys.learners.item_knn import ItemKNNSettings
from raysys.learners.next_item import META, NextItemModel
from raysys.learners.next_item_settings import NextItemSettings
from raysys.learners.protocol import Context, HoldsSettings
from raysys.learners.shop_sequences import shop_sequences
from tests.learners.suite import LearnerSuite
from tests.text.tiny import write_tiny_bert

QUICK = {
    "settings": {"width": 16, "layers": 1, "epochs": 5, "batch_size": 128, "learning_rate": 2e-2},
    "history": 12,
}


class TestNextItem(LearnerSuite):
    name = "next_item"
    settings = QUICK
    gain_over_random: ClassVar[float] = 0.08

    def test_proposes_what_scores_best(self, model: NextItemModel, context: Context) -> None:
        history = np.array([3, 1, 7], dtype=np.int32)
        items, scores = model.propose(history, 10)
        assert len(items) == 10 and len(set(items.tolist())) == 10
        assert (np.diff(scores) <= 0).all()
        assert items.max() < len(context.catalogue)

    def test_a_catalogue_that_changed_keeps_items_apart(
        self, model: NextItemModel, context: Context, tmp_path
    ) -> None:
        model.save(tmp_path)
        table = context.catalogue.table
        fewer = Catalogue(table.slice(2))  # rows move by two
        again = load_model(self.name, tmp_path, fewer)
        assert isinstance(again, NextItemModel)
        history = np.array([3, 5, 7], dtype=np.int32)
        items, _ = model.propose(history, 10)
        moved, _ = again.propose(history - 2, 10)
        assert moved.tolist() == [item - 2 for item in items.tolist() if item >= 2]


@pytest.mark.parametrize("learner", ["item_knn", "session_knn"])
def test_neighbours_are_learners_of_the_shop_too(learner, tmp_path_factory) -> None:  # type: ignore[no-untyped-def]
    from tests.synthetic import write_examples

    examples, catalogue = write_examples(tmp_path_factory.mktemp("features"), 120, 60)
    model = make_learner("next_item", {"learner": learner}).fit(
        examples.with_folds(0, 1), Context(catalogue, tmp_path_factory.mktemp("scratch"))
    )
    later = examples.with_folds(2).batch()
    assert np.isfinite(model.score(later)).all()


def test_the_settings_are_those_of_the_learner_of_sequences() -> None:
    with pytest.raises(UserError, match="neighbourss"):
        make_learner("next_item", {"learner": "item_knn", "settings": {"neighbourss": 3}})


def test_the_learner_within_has_its_own_settings_but_for_what_the_shop_says() -> None:
    told = NextItemSettings(history=30, settings={"width": 32})
    assert isinstance(told, HoldsSettings) and told.within("history") is None
    within = told.within("settings")
    assert within is not None
    of_shop = {"max_length": 30, "texts": False, "time_gaps": False}
    assert {name: within[name] for name in of_shop} == of_shop
    assert within["negatives"] is None, "the catalogue says"
    for items, negatives in ((4000, 0), (4001, 2000)):
        known = told.within("settings", items)
        assert known is not None and known["negatives"] == negatives
    assert (within["width"], within["layers"], within["learning_rate"]) == (32, 2, 0.002)
    given = {"max_length": 20, "texts": True, "negatives": 100}
    within = NextItemSettings(settings=given).within("settings")
    assert within is not None and given.items() <= within.items()
    within = NextItemSettings(learner="item_knn", settings={"seen": 0}).within("settings")
    assert within == dict(ItemKNNSettings(seen=0))


def test_times_that_histories_do_not_have_are_refused() -> None:
    told = {"settings": {"time_gaps": True}}
    with pytest.raises(UserError, match="without their times; leave it out"):
        make_learner("next_item", told)
    make_learner("next_item", {"settings": {"time_gaps": False}})


def test_a_model_of_an_earlier_version_that_was_told_of_times_is_read(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    from tests.synthetic import write_examples

    examples, catalogue = write_examples(tmp_path_factory.mktemp("features"), 120, 60)
    context = Context(catalogue, tmp_path_factory.mktemp("scratch"))
    folder = tmp_path_factory.mktemp("model")
    model = make_learner("next_item", {"learner": "item_knn"}).fit(examples.with_folds(0), context)
    model.save(folder)
    meta = json.loads((folder / META).read_text())
    meta["settings"]["settings"]["time_gaps"] = True
    (folder / META).write_text(json.dumps(meta))
    batch = examples.with_folds(2).batch()
    again = NextItemModel.load(folder, catalogue)
    np.testing.assert_array_equal(again.score(batch), model.score(batch))


@pytest.mark.long
def test_texts_of_items_are_read_where_the_settings_say_so(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In all folds, once; and serving, a top-up, a folder and the remote half read the same."""
    from raysys.text.encoder import Encoder
    from tests.synthetic import write_examples

    examples, catalogue = write_examples(tmp_path_factory.mktemp("features"), 120, 60)
    table = catalogue.table
    title = table["title"].to_pylist()
    title[5] = None
    columns = {name: table[name] for name in table.column_names} | {"title": pa.array(title)}
    catalogue = Catalogue(pa.table(columns, schema=table.schema))
    context = Context(catalogue, tmp_path_factory.mktemp("scratch"))
    encoded: list[int] = []
    encode = Encoder.encode

    def counting(self: Encoder, texts: Sequence[str]) -> np.ndarray:
        encoded.append(len(texts))
        return encode(self, texts)

    monkeypatch.setattr(Encoder, "encode", counting)
    bert = str(write_tiny_bert(tmp_path_factory.mktemp("bert")))
    told = {**QUICK, "text_model": bert, "text": ("title",)}
    without = make_learner("next_item", told).fit(examples.with_folds(0), context)
    assert encoded == [] and without.model.facts.vectors is None
    learner = make_learner("next_item", {**told, "settings": {**QUICK["settings"], "texts": True}})
    model, second = learner.fit_folds([examples.with_folds(0), examples.with_folds(0, 1)], context)
    assert len(encoded) == 1, "once for both folds"
    assert isinstance(model, NextItemModel) and isinstance(second, NextItemModel)

    vectors = model.model.facts.vectors
    assert vectors.shape[0] == len(catalogue)
    length = np.linalg.norm(vectors, axis=1)
    assert length[5] == 0, "no text, no vector"
    np.testing.assert_allclose(np.delete(length, 5), 1, atol=1e-3)
    np.testing.assert_array_equal(second.model.facts.vectors, vectors)

    batch = examples.with_folds(2).batch()
    assert not np.array_equal(model.score(batch), without.score(batch))
    folder = tmp_path_factory.mktemp("model")
    model.save(folder)
    served = load_model("next_item", folder, catalogue)
    assert isinstance(served, NextItemModel)
    np.testing.assert_array_equal(served.model.facts.vectors, vectors)
    elsewhere = replace(batch, encoded=served.encode_sessions(batch.history))
    np.testing.assert_array_equal(served.score(elsewhere), model.score(batch))
    more = learner.resume(served, examples.with_folds(1), context, steps=2, rate=0.1)
    np.testing.assert_array_equal(more.model.facts.vectors, vectors)
    assert len(encoded) == 1, "what is served was told of texts when it was fitted"


def test_a_column_that_items_do_not_have_is_named(tmp_path_factory) -> None:  # type: ignore[no-untyped-def]
    from tests.synthetic import write_examples

    examples, catalogue = write_examples(tmp_path_factory.mktemp("features"), 60, 30)
    told = {"settings": {"texts": True}, "text": ("titel",)}
    with pytest.raises(UserError, match="no text column 'titel'"):
        make_learner("next_item", told).fit(
            examples.with_folds(0), Context(catalogue, tmp_path_factory.mktemp("scratch"))
        )


def test_a_user_is_one_sequence(tmp_path) -> None:  # type: ignore[no-untyped-def]
    from tests.synthetic import write_examples

    examples: Examples = write_examples(tmp_path, 120, 60)[0].with_folds(0, 1)
    batch = examples.batch()
    sequences = shop_sequences(examples, 12)
    users = batch.user[batch.user >= 0]
    assert len(sequences) == len(set(users.tolist())) + int((batch.user < 0).sum())
    wanted = int((batch.label > 0).sum())  # type: ignore[operator]
    _, first = np.unique(batch.user, return_index=True)
    before = sum(min(len(batch.history[i]), 12) for i in first)
    assert len(sequences.items) == wanted + before


def test_a_transformer_goes_on_by_small_steps(tmp_path_factory: pytest.TempPathFactory) -> None:
    """From its own weights, in its own numbers; neighbours would forget what they knew."""
    from raysys.learners.sequence_training import Trainer
    from tests.synthetic import write_examples

    examples, catalogue = write_examples(tmp_path_factory.mktemp("features"), 120, 60)
    context = Context(catalogue, tmp_path_factory.mktemp("scratch"))
    learner = make_learner("next_item", QUICK)
    model = learner.fit(examples.with_folds(0), context)
    batch = examples.with_folds(2).batch()
    before = model.score(batch)
    steps = 0
    step = Trainer._step

    def counting(self: Trainer, *given: object) -> float:
        nonlocal steps
        steps += 1
        return step(self, *given)

    # it was fitted where there is a GPU, and none is given here
    on_gpu = model.model.settings.model_copy(update={"device": "cuda"})
    model.model.settings = on_gpu
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_step", counting)
        more = learner.resume(model, examples.with_folds(1), context, steps=2, rate=0.1)
    assert 1 <= steps <= 2
    assert np.array_equal(model.score(batch), before)
    after = more.score(batch)
    assert not np.array_equal(after, before)
    assert np.corrcoef(after, before)[0, 1] > 0.95
    # rows of the catalogue may have moved since: it is told what follows what by ids
    moved = Context(Catalogue(catalogue.table.slice(2)), context.scratch)
    assert isinstance(more, NextItemModel) and isinstance(model, NextItemModel)
    shifted = NextItemModel(model.model, model.ids, moved.catalogue, model.settings)
    told = shop_sequences(examples.with_folds(1), 12)
    told = replace(told, items=told.items % 58)
    own = shifted.in_own_numbers(told)
    assert own.items.tolist() == [item + 2 for item in told.items.tolist()]
    assert len(own) == len(told)
    knn = make_learner("next_item", {"learner": "item_knn"})
    neighbours = knn.fit(examples.with_folds(0), context)
    with pytest.raises(UserError, match="cannot go on"):
        knn.resume(neighbours, examples.with_folds(1), context, 2, 0.1)
