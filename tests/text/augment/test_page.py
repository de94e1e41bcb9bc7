"""The examples of docs/augmentation.md are true, and its YAML is what the models take."""

from __future__ import annotations

import doctest
import json
import re
from pathlib import Path

import pytest
import yaml

from benchmarks.result import RESULTS
from raysys.config import parse_settings
from raysys.learners.cross_encoder_ranker_settings import CrossEncoderRankerSettings
from raysys.learners.next_item_settings import NextItemSettings
from raysys.learners.two_tower_settings import TwoTowerSettings
from raysys.stages.text_settings import TextSettings
from raysys.text.augment import Augmentation

PAGE = Path(__file__).parents[3] / "docs" / "augmentation.md"


def blocks(kind: str) -> list[str]:
    text = PAGE.read_text(encoding="utf-8")
    return re.findall(rf"^```{kind}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


@pytest.mark.long
def test_the_examples_say_what_happens() -> None:
    session = "\n".join(blocks("pycon"))
    test = doctest.DocTestParser().get_doctest(session, {}, PAGE.name, str(PAGE), 0)
    assert len(test.examples) > 25
    said: list[str] = []
    result = doctest.DocTestRunner().run(test, out=said.append)
    assert not result.failed, "".join(said)


def test_the_page_does_not_promise_what_was_not_measured() -> None:
    figures = json.loads((RESULTS / "augmentation.json").read_text(encoding="utf-8"))["figures"]
    gains = [figure for figure in figures if "_gain_" in figure["name"]]
    gained = [figure["name"] for figure in gains if figure["low"] > 0]
    lost = [figure["name"] for figure in gains if figure["high"] < 0]
    assert len(gains) == 28
    assert not gained, "say in docs/augmentation.md what gained"
    assert lost == ["pricerunner_words_gain_word_swap"], "say in docs/augmentation.md what lost"


def test_the_yaml_is_taken() -> None:
    training, fit, more, translation = (yaml.safe_load(block) for block in blocks("yaml"))
    found = parse_settings(TwoTowerSettings, training["learners"]["two_tower"], where="page")
    assert [method.kind for method in found.augmentation.methods] == [
        "synonym_replacement", "word_dropout", "crop",
    ]  # fmt: skip
    told = parse_settings(TextSettings, fit, where="page").augmentation
    assert [method.kind for method in told.methods] == ["spelling_noise", "word_swap"]
    sessions = parse_settings(NextItemSettings, more["learners"]["next_item"], where="page")
    kinds = [method.kind for method in sessions.of_sequences().augmentation.methods]
    assert kinds == ["crop", "mask"]
    ranker = more["learners"]["cross_encoder_ranker"]
    pairs = parse_settings(CrossEncoderRankerSettings, ranker, where="page")
    assert pairs.augmentation.text_methods and pairs.augments == "query"
    assert parse_settings(Augmentation, translation, where="page").text_methods
