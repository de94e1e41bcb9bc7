"""Taggers on a small made-up shop: learned quickly, exact, the same when loaded."""

from __future__ import annotations

import itertools
import json
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from raysys import schema
from raysys.errors import UserError
from raysys.learners import entity_tagger as entity_tagger_module
from raysys.learners.entity_objective import EntityObjective
from raysys.learners.entity_tagger import (
    EntityTagger,
    EntityTaggerSettings,
    WordTagger,
    WordTaggerSettings,
)
from raysys.learners.gazetteer_tagger import GazetteerTagger, GazetteerTaggerSettings
from raysys.learners.text_protocol import PREDICTIONS, TextContext, TextLearner
from raysys.text.spans import attributes_to_spans
from raysys.text.tags import Scheme, Tags
from raysys.text.training import TrainingSettings, train
from tests.text.tiny import write_tiny_bert

BRANDS = ["Acme", "Fjällräven", "O'Neill", "ZORG 3", "Ünique"]
COLOURS = ["red", "Midnight Blue", "grün", "🌈 rainbow"]
THINGS = ["boots", "kettle", "rod", "lamp"]


def shop(n: int, seed: int) -> pa.Table:
    rng = np.random.default_rng(seed)
    rows = []
    for at in range(n):
        brand, colour = BRANDS[rng.integers(5)], COLOURS[rng.integers(4)]
        model = f"{'XKQZ'[rng.integers(4)]}{rng.integers(10, 999)}"
        size = f"{rng.integers(1, 60)}{['ml', ' oz', 'cm'][rng.integers(3)]}"
        parts = [brand, model, THINGS[rng.integers(4)], colour, size]
        text = "\t".join(parts) if at % 7 == 0 else " ".join(parts)
        named = {"brand": brand, "model": model, "colour": colour, "size": size}
        located = attributes_to_spans(text, named)
        assert not located.missed
        row = {"text_id": str(at), "text": text, "spans": [vars(s) for s in located.spans]}
        rows.append(row | {"split": "train"})
    return pa.Table.from_pylist(rows, schema=schema.LABELLED_TEXTS)


def f1(model_spans: list, gold_spans: list) -> float:
    key = [
        [{(s["start"], s["end"], s["label"]) for s in row or ()} for row in rows]
        for rows in (model_spans, gold_spans)
    ]
    right = sum(len(a & b) for a, b in zip(*key, strict=True))
    return 2 * right / sum(len(each) for rows in key for each in rows)


def training(epochs: float) -> TrainingSettings:
    return TrainingSettings(epochs=epochs, learning_rate=5e-3, batch_size=8)


def word_tagger(**settings: object) -> WordTagger:
    return WordTagger(WordTaggerSettings(surface=24, training=training(6), **settings))


def entity_tagger(folder: Path, **settings: object) -> EntityTagger:
    model = str(write_tiny_bert(folder / "bert"))
    made = EntityTaggerSettings(model=model, surface=24, training=training(6), **settings)
    return EntityTagger(made)


def learner(kind: str, folder: Path) -> TextLearner:
    if kind == "gazetteer":
        return GazetteerTagger(GazetteerTaggerSettings())
    return word_tagger() if kind == "word" else entity_tagger(folder)


@pytest.mark.long
@pytest.mark.parametrize("kind", ["gazetteer", "word", "entity"])
def test_a_tagger_finds_spans_and_is_the_same_when_loaded(kind: str, tmp_path: Path) -> None:
    fitted = learner(kind, tmp_path)
    model = fitted.fit(shop(160, 0), shop(40, 1), TextContext(tmp_path))
    held = shop(60, 2)
    said = model.predict(held)
    assert said.schema == PREDICTIONS["entities"] and len(said) == len(held)
    spans = said["spans"].to_pylist()
    assert f1(spans, held["spans"].to_pylist()) > (0.8 if kind == "gazetteer" else 0.9)
    for text, found in zip(held["text"].to_pylist(), spans, strict=True):
        ends = [0]
        for span in found:
            assert text[span["start"] : span["end"]] == span["text"] != ""
            assert span["start"] >= ends[-1] and 0 < span["probability"] <= 1
            ends.append(span["end"])
    folder = tmp_path / "saved"
    folder.mkdir()
    model.save(folder)
    assert not {path.suffix for path in folder.rglob("*.*")} & {".bin", ".pt", ".pkl"}
    again = fitted.model_class.load(folder)
    assert again.predict(held).equals(said)


@pytest.mark.long
@pytest.mark.parametrize("kind", ["gazetteer", "word", "entity"])
def test_odd_texts_are_read(kind: str, tmp_path: Path) -> None:
    model = learner(kind, tmp_path).fit(shop(40, 0), shop(10, 1), TextContext(tmp_path))
    texts = ["", " \t\n", "🙂", "\x00\ud800"[:1], "Acme", "小米 手机 128GB", "x" * 5000,
             "Acme X12 boots red 5ml " * 500]  # fmt: skip
    spans = model.predict(pa.table({"text": texts}))["spans"].to_pylist()
    assert spans[0] == spans[1] == []
    for text, found in zip(texts, spans, strict=True):
        assert all(text[s["start"] : s["end"]] == s["text"] for s in found)


@pytest.mark.long
def test_a_long_text_is_tagged_as_its_parts_are(tmp_path: Path) -> None:
    model = word_tagger(window=32, overlap=16).fit(shop(160, 0), shop(40, 1), TextContext(tmp_path))
    rows = shop(30, 3)
    text, gold = "", []
    for row in rows.to_pylist():
        gold += [
            {**span, "start": span["start"] + len(text), "end": span["end"] + len(text)}
            for span in row["spans"]
        ]
        text += row["text"] + " "
    spans = model.predict(pa.table({"text": [text]}))["spans"].to_pylist()
    assert f1(spans, [gold]) > 0.8


@pytest.mark.long
@pytest.mark.parametrize("scheme", ["bio", "bioes"])
def test_spans_that_windows_cut_can_be_learned(scheme: Scheme, tmp_path: Path) -> None:
    """Of long texts some span lies across the beginning and the end of any window."""
    value = "Fjällräven far north"
    texts = [f"{'word ' * at}{value} {'more ' * 20}{value}" for at in range(16)]
    rows = [
        {
            "text_id": str(at),
            "text": text,
            "spans": [
                {"start": start, "end": start + len(value), "label": "brand"}
                for start in (text.index(value), text.rindex(value))
            ],
            "split": "train",
        }
        for at, text in enumerate(texts)
    ]
    table = pa.Table.from_pylist(rows, schema=schema.LABELLED_TEXTS)
    model = word_tagger(scheme=scheme, window=12, overlap=6).fit(
        table, table, TextContext(tmp_path)
    )
    assert model.fitted is not None and np.isfinite(model.fitted.figures["f1"])
    assert f1(model.predict(table)["spans"].to_pylist(), table["spans"].to_pylist()) > 0.9


@pytest.mark.parametrize("scheme", ["bio", "bioes"])
def test_any_part_of_a_text_has_tags_that_may_follow_each_other(scheme: Scheme) -> None:
    tags = Tags(("brand", "size"), scheme)
    whole = np.array([*tags.path(0, 3), *tags.path(1, 2), 0, *tags.path(1, 1), *tags.path(0, 4)])
    allowed, n = tags.allowed(), len(tags)
    assert tags.part(whole, 0, len(whole)).tolist() == whole.tolist()
    for first in range(len(whole)):
        for last in range(first + 1, len(whole) + 1):
            part = tags.part(whole, first, last)
            path = [n, *part, n]
            assert all(allowed[a, b] for a, b in itertools.pairwise(path))
            label = [(tag - 1) // tags.per_label for tag in whole[first:last]]
            assert [(tag - 1) // tags.per_label for tag in part] == label


@pytest.mark.long
def test_a_fit_with_the_same_seed_is_the_same(tmp_path: Path) -> None:
    train, validation, held = shop(40, 0), shop(10, 1), shop(10, 2)
    context = TextContext(tmp_path, seed=3)
    one = entity_tagger(tmp_path).fit(train, validation, context).predict(held)
    two = entity_tagger(tmp_path).fit(train, validation, context).predict(held)
    assert one.equals(two)


@pytest.mark.long
def test_without_a_crf_impossible_tags_are_still_excluded(tmp_path: Path) -> None:
    fitted = word_tagger(crf=False, scheme="bioes")
    model = fitted.fit(shop(120, 0), shop(30, 1), TextContext(tmp_path))
    assert not model.network.transitions.any()
    held = shop(40, 2)
    assert f1(model.predict(held)["spans"].to_pylist(), held["spans"].to_pylist()) > 0.8


@pytest.mark.long
def test_probabilities_keep_their_promise(tmp_path: Path) -> None:
    """Of spans said with probability p, about a share p is right."""
    noisy = shop(400, 0)
    rng = np.random.default_rng(0)
    rows = noisy.to_pylist()
    for row in rows:
        row["spans"] = [span for span in row["spans"] if rng.random() > 0.3]
    table = pa.Table.from_pylist(rows, schema=schema.LABELLED_TEXTS)
    model = word_tagger().fit(table.slice(0, 200), table.slice(200, 100), TextContext(tmp_path))
    held = table.slice(300)
    truth = [{(s["start"], s["end"], s["label"]) for s in r} for r in held["spans"].to_pylist()]
    found = model.candidates(held["text"].to_pylist())
    promised = [c.probability for spans in found for c in spans if c.probability > 0.1]
    right = [
        (c.span.start, c.span.end, c.span.label) in there
        for there, spans in zip(truth, found, strict=True)
        for c in spans
        if c.probability > 0.1
    ]
    assert abs(np.mean(promised) - np.mean(right)) < 0.1
    assert 0.5 < np.mean(right) < 0.9


@pytest.mark.parametrize("crf", [True, False])
def test_parts_of_a_batch_make_its_gradient(crf: bool, tmp_path: Path, monkeypatch) -> None:
    """Titles and windows of unlike lengths: the loss is a mean over units, not over windows."""
    sent: list[EntityObjective] = []

    def stop(objective: EntityObjective, *_: object, **__: object) -> None:
        sent.append(objective)
        raise KeyboardInterrupt

    monkeypatch.setattr(entity_tagger_module, "train", stop)
    table = shop(6, 0)
    rows = table.to_pylist()
    rows[0]["text"] += " and a long tail of words that is no attribute at all" * 3
    with pytest.raises(KeyboardInterrupt):
        word_tagger(crf=crf, dropout=0.0, window=64).fit(
            pa.Table.from_pylist(rows, schema=table.schema), shop(4, 1), TextContext(tmp_path)
        )
    (objective,) = sent
    torch.manual_seed(0)
    module = objective.build()
    rng, every = np.random.default_rng(0), np.arange(len(objective.training))

    def gradient(parts: list[np.ndarray]) -> torch.Tensor:
        module.zero_grad()
        batches = [(part, objective.collate(part, rng)) for part in parts]
        whole = sum(objective.weight(part, batch) for part, batch in batches)
        for part, batch in batches:
            (objective.loss(module, batch) * objective.weight(part, batch) / whole).backward()
        return torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None])

    torch.testing.assert_close(
        gradient([np.array([row]) for row in every]), gradient([every]), atol=1e-5, rtol=1e-4
    )


def test_a_fit_that_was_cut_off_goes_on(tmp_path: Path, monkeypatch, caplog) -> None:
    plan = {**training(6).model_dump(), "epochs": 1, "checkpoint_every": {"steps": 1}}
    settings = WordTaggerSettings(surface=24, training=TrainingSettings(**plan))
    loss, calls = EntityObjective.loss, []

    def cut_off(self: EntityObjective, *told: object) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return loss(self, *told)  # type: ignore[arg-type]

    whole = WordTagger(settings).fit(shop(60, 0), shop(8, 1), TextContext(tmp_path / "whole"))
    context = TextContext(tmp_path / "cut")
    monkeypatch.setattr(EntityObjective, "loss", cut_off)
    with pytest.raises(KeyboardInterrupt):
        WordTagger(settings).fit(shop(60, 0), shop(8, 1), context)
    monkeypatch.undo()
    with caplog.at_level("INFO", logger="raysys"):
        found = WordTagger(settings).fit(shop(60, 0), shop(8, 1), context)
    assert "going on after step 2" in caplog.text
    asked = shop(8, 2)
    assert found.predict(asked).equals(whole.predict(asked))
    assert list(context.scratch.iterdir()) == []


def test_mistakes_are_said(tmp_path: Path) -> None:
    nothing = shop(5, 0).drop_columns("spans").append_column(
        "spans", pa.array([[]] * 5, schema.LABELLED_TEXTS.field("spans").type)
    )  # fmt: skip
    for kind in ("gazetteer", "word", "entity"):
        with pytest.raises(UserError, match="no span in 5 training texts"):
            learner(kind, tmp_path).fit(nothing, nothing, TextContext(tmp_path))
    with pytest.raises(UserError, match="cannot share 32"):
        word_tagger(window=32, overlap=32).fit(shop(5, 0), shop(5, 1), TextContext(tmp_path))
    with pytest.raises(UserError, match="nothing but the surface"):
        WordTagger(WordTaggerSettings(surface=0)).fit(shop(5, 0), shop(5, 1), TextContext(tmp_path))
    outside = shop(5, 0).to_pylist()
    outside[2]["spans"] = [{"start": 3, "end": 1000, "label": "brand"}]
    broken = pa.Table.from_pylist(outside, schema=schema.LABELLED_TEXTS)
    with pytest.raises(UserError, match="row 2 does not lie in its text"):
        word_tagger().fit(broken, shop(5, 1), TextContext(tmp_path))


@pytest.mark.long
def test_workers_get_the_objective_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Ray Train run pickles it: what arrives makes the same batches and the same loss."""
    sent: list[EntityObjective] = []

    def train_elsewhere(objective: EntityObjective, *args: object, **more: object) -> object:
        sent.append(pickle.loads(pickle.dumps(objective)))  # noqa: S301  (as Ray does)
        return train(objective, *args, **more)

    monkeypatch.setattr(entity_tagger_module, "train", train_elsewhere)
    entity_tagger(tmp_path, crf=True).fit(shop(24, 0), shop(8, 1), TextContext(tmp_path))
    (arrived,) = sent
    torch.manual_seed(0)
    module = arrived.build().eval()
    batch = arrived.collate(np.arange(4), np.random.default_rng(0))
    assert torch.isfinite(arrived.loss(module, batch)) and len(arrived.lengths()) == 24
    assert 0 <= arrived.evaluate(module)["f1"] <= 1


def test_one_example_of_a_label_is_enough_to_fit(tmp_path: Path) -> None:
    rows = shop(20, 0).to_pylist()
    rows[0]["spans"].append({"start": 0, "end": 1, "label": "rare"})
    table = pa.Table.from_pylist(rows, schema=schema.LABELLED_TEXTS)
    model = word_tagger().fit(table, shop(5, 1), TextContext(tmp_path))
    assert "rare" in model.tags.labels
    folder = tmp_path / "saved"
    folder.mkdir()
    model.save(folder)
    assert "rare" in json.loads((folder / "network.json").read_text())["labels"]
