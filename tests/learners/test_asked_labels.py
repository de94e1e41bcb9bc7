"""Entities of which some labels are asked for: what overlaps them stands in nobody's way."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from raysys import schema
from raysys.errors import UserError
from raysys.learners.entity_tagger import EntityModel, WordTagger, WordTaggerSettings
from raysys.learners.gazetteer_tagger import GazetteerTagger, GazetteerTaggerSettings
from raysys.learners.span_decisions import Thresholds
from raysys.learners.text import make_text_learner
from raysys.learners.text_protocol import SpanModel, TextContext, check_labels
from raysys.text.span_probabilities import Candidate


def labelled(rows: Sequence[tuple[str, dict[str, str]]]) -> pa.Table:
    found = []
    for at, (text, named) in enumerate(rows):
        spans = [
            {"start": text.index(value), "end": text.index(value) + len(value), "label": label}
            for label, value in named.items()
        ]
        found.append({"text_id": str(at), "text": text, "spans": spans, "split": "train"})
    return pa.Table.from_pylist(found, schema=schema.LABELLED_TEXTS)


DRINKS = labelled(
    [
        ("red bull cola", {"brand": "red bull"}),
        ("red kettle", {"colour": "red"}),
        ("red lamp 3 cm", {"colour": "red", "size": "3 cm"}),
    ]
    * 6
)


def of(said: pa.Table) -> list[list[tuple[str, str]]]:
    return [[(span["text"], span["label"]) for span in row] for row in said["spans"].to_pylist()]


def test_a_known_value_within_one_that_is_not_asked_for(tmp_path: Path) -> None:
    learner = GazetteerTagger(GazetteerTaggerSettings())
    model = learner.fit(DRINKS, DRINKS, TextContext(tmp_path))
    model.thresholds = Thresholds(0.1, {})
    assert model.labels == ("brand", "colour", "size")
    table = pa.table({"text": ["red bull lamp 3 cm", ""]})
    assert of(model.predict(table)) == [[("red bull", "brand"), ("3 cm", "size")], []]
    assert of(model.predict(table, ["colour"])) == [[("red", "colour")], []]
    assert of(model.predict(table, model.labels)) == of(model.predict(table))


@pytest.fixture(scope="module")
def tagger(tmp_path_factory: pytest.TempPathFactory) -> EntityModel:
    settings = WordTaggerSettings(surface=16, training={"epochs": 4, "learning_rate": 5e-3})
    context = TextContext(tmp_path_factory.mktemp("tagger"))
    return WordTagger(settings).fit(DRINKS, DRINKS, context)


@pytest.mark.long
def test_the_likelier_span_that_is_not_asked_for_gives_way(
    tagger: EntityModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    brand, colour = (tagger.labels.index(name) for name in ("brand", "colour"))
    both = [Candidate(0, 2, brand, 0.6), Candidate(0, 1, colour, 0.35)]
    monkeypatch.setattr(tagger, "_candidates", lambda *_: [both])
    monkeypatch.setattr(tagger, "thresholds", Thresholds(0.3, {}))
    table = pa.table({"text": ["red bull cola"]})
    assert of(tagger.predict(table)) == [[("red bull", "brand")]]
    (asked,) = tagger.predict(table, ["colour", "size"])["spans"].to_pylist()
    assert [(span["text"], span["probability"]) for span in asked] == [("red", pytest.approx(0.35))]


@pytest.mark.long
def test_a_probability_does_not_hang_on_what_is_asked_for(tagger: EntityModel) -> None:
    texts = ["red bull lamp 3 cm", "red kettle 7 cm", "bull"]

    def probabilities(labels: Any) -> dict[tuple[int, int, int, str], float]:
        return {
            (row, each.span.start, each.span.end, each.span.label): each.probability
            for row, found in enumerate(tagger.candidates(texts, labels))
            for each in found
        }

    whole = probabilities(None)
    for label in tagger.labels:
        alone = probabilities([label])
        assert alone and {key[3] for key in alone} == {label}
        assert {k: alone.get(k) for k in whole if k[3] == label} == {
            k: value for k, value in whole.items() if k[3] == label
        }
    assert probabilities(tagger.labels) == whole


def test_labels_that_were_not_learned_are_refused(tmp_path: Path) -> None:
    learner = GazetteerTagger(GazetteerTaggerSettings())
    model = learner.fit(DRINKS, DRINKS, TextContext(tmp_path))
    assert isinstance(model, SpanModel)
    check_labels(model, ["size", "brand"], where="labels")
    with pytest.raises(UserError, match="unknown label 'color'") as caught:
        check_labels(model, ["size", "color"], where="labels")
    assert caught.value.where == "labels"
    assert caught.value.mend == "did you mean 'colour'? known are 'brand', 'colour', 'size'"
    rows = [{"text": t, "label": t[:1], "text_id": t, "split": "train"} for t in ("ab", "cd")] * 5
    titles = pa.Table.from_pylist(rows, schema=schema.LABELLED_TEXTS)
    classes = make_text_learner("tfidf_classifier", {"costs": [1.0]}, task="classify")
    other = classes.fit(titles, titles, TextContext(tmp_path))
    with pytest.raises(UserError, match="of entities, not of classify"):
        check_labels(other, ["brand"], where="labels")
