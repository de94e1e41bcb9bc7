"""Pairs of a shop: what belongs together, what is no negative, and that it is learned."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from raysys import schema
from raysys.errors import UserError
from raysys.text.models import open_model, open_with_head
from raysys.text.pretraining import (
    Pairs,
    PairSettings,
    PairsObjective,
    PairsSettings,
    gather_pairs,
    tokenise,
)
from raysys.text.pretraining.behaviour import _Shop
from raysys.text.pretraining.corpus import log_end
from raysys.text.pretraining.known import Known
from raysys.text.pretraining.pairs import HEAD, Negatives
from raysys.text.training import TrainingSettings, train
from tests.text.tiny_language import write_masked, write_shop


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_masked(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def ingest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shop(tmp_path_factory.mktemp("shop"))


def _gathered(ingest: Path, *sources: str, **more: object) -> Pairs:
    settings = {"item": ("title",), "held_out": 0.2, **more}
    wanted = PairSettings.model_validate({"sources": sources, **settings})
    return gather_pairs(wanted, ingest, until=log_end(ingest, 1))


def test_titles_go_with_descriptions_both_ways(ingest: Path):
    pairs = _gathered(ingest, "titles")
    said = {(pairs.texts[a], pairs.texts[b]) for a, b in zip(pairs.left, pairs.right, strict=True)}
    assert all((b, a) in said for a, b in said)
    assert len(set(pairs.item.tolist())) > 50
    held = {frozenset(p) for p in zip(pairs.left[pairs.held_out], pairs.right[pairs.held_out],
                                      strict=True)}  # fmt: skip
    rest = {frozenset(p) for p in zip(pairs.left[~pairs.held_out], pairs.right[~pairs.held_out],
                                      strict=True)}  # fmt: skip
    assert held and rest and not held & rest  # no pair is trained on the other way round


def test_behaviour_is_counted_and_the_last_days_are_not_read(ingest: Path):
    pairs = _gathered(ingest, "queries", "items", min_count=1, held_out=0.4)
    lefts = {pairs.texts[code] for code in pairs.left[pairs.source == 1]}
    assert "buy milk" in lefts and "secret query" not in lefts
    for left, right in zip(pairs.left, pairs.right, strict=True):
        kinds = [pairs.texts[code].split()[1] for code in (left, right)]
        assert kinds[0] == kinds[1]  # sessions of the shop stay with one kind
    often = _gathered(ingest, "items", min_count=4, held_out=0.4)
    assert len(often) < int((pairs.source == 2).sum())


def _log(folder: Path, *sessions: tuple[str, ...]) -> Path:
    """An ingested log: sessions of items by their letter; several letters: at once."""
    letters = sorted({letter for session in sessions for step in session for letter in step})
    items = [{"item_id": letter, "title": f"the {letter}"} for letter in letters]
    events = [
        {
            "event_id": f"{number}-{at}-{letter}", "event_type": "click", "user_id": "u",
            "item_id": letter, "timestamp": 1_000_000 * number + at, "session_id": f"s{number}",
        }
        for number, session in enumerate(sessions)
        for at, step in enumerate(session)
        for letter in step
    ]  # fmt: skip
    ingest = folder / "ingest"
    (ingest / "events").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(items, schema=schema.ITEMS), ingest / "items.parquet")
    pq.write_table(
        pa.Table.from_pylist(events, schema=schema.EVENTS), ingest / "events" / "part.parquet"
    )
    return ingest


def _next(ingest: Path, **more: object) -> set[str]:
    settings = {"sources": ["items"], "item": ["title"], "min_count": 1, **more}
    found = _Shop(PairSettings.model_validate(settings), ingest, None).items()
    return {left[-1] + right[-1] for _, left, right, *_ in found}


def test_next_items_are_those_within_the_window(tmp_path: Path):
    ingest = _log(tmp_path, ("a", "b", "b", "c", "d"))
    assert _next(ingest, window=1) == {"ab", "bc", "cd"}
    assert _next(ingest, window=2) == {"ab", "bc", "cd", "ac", "bd"}


def test_of_a_basket_neither_is_first_and_sessions_are_apart(tmp_path: Path):
    ingest = _log(tmp_path, ("ab", "c"), ("d", "e"))
    assert _next(ingest, window=1) == {"ab", "ba", "bc", "de"}


def test_rare_pairs_are_left_out_and_repeats_in_a_session_count_once(tmp_path: Path):
    ingest = _log(tmp_path, ("a", "b", "a", "b"), ("c", "d"), ("c", "d"), ("d", "e"), ("d", "e"))
    assert _next(ingest, window=1, min_count=2) == {"cd", "de"}


def test_of_a_long_log_whole_sessions_are_drawn(tmp_path: Path):
    ingest = _log(tmp_path, *[("a", "b") if at % 2 else ("c", "d") for at in range(400)])
    settings = {"sources": ["items"], "item": ["title"], "held_out": 0.5, "max_events": 80}
    shop = _Shop(PairSettings.model_validate({**settings, "min_count": 5}), ingest, None)
    assert {(left, right) for _, left, right, *_ in shop.items()} == {
        ("the a", "the b"), ("the c", "the d")
    }  # fmt: skip
    shop = _Shop(PairSettings.model_validate({**settings, "min_count": 60}), ingest, None)
    assert shop.items() == []


def test_spellings_of_a_query_are_one_in_the_most_frequent(tmp_path: Path):
    ingest = _log(tmp_path, *[("a",)] * 6)
    place = ingest / "events" / "part.parquet"
    log = pq.read_table(place)
    typed = ["Sony TV", "Sony  TV", "sony tv", "USB", "usb", "usb "]
    at = log.schema.get_field_index("query")
    pq.write_table(log.set_column(at, log.schema.field(at), pa.array(typed)), place)
    settings = {"sources": ["queries"], "item": ["title"], "min_count": 3}
    found = _Shop(PairSettings.model_validate(settings), ingest, None).queries()
    assert {(query, item) for _, query, item, *_ in found} == {
        ("Sony TV", "the a"),
        ("usb", "the a"),
    }


def test_the_same_pair_counts_once_and_a_text_is_not_its_own_pair():
    found = [("items", *pair, 0, 1, 0) for pair in (("a", "b"), ("a", "a"), ("a", "b"))]
    pairs = Pairs.of(found, 0.5)
    assert len(pairs) == 1 and pairs.texts == ("a", "b")


def test_what_belongs_together_is_no_negative():
    found = [
        ("queries", "tea", "green tea", -1, 0, 0),
        ("queries", "tea", "black tea", -1, 1, 0),
        ("queries", "mug", "blue mug", -1, 2, 1),
        ("titles", "Blue Mug", "holds tea", 2, 2, 1),
    ]
    pairs = Pairs.of(found, 0.5)
    code = {text: at for at, text in enumerate(pairs.texts)}
    known = Known(pairs)

    def false_negative(left: str, right: str, other: str) -> bool:
        return bool(known.together(*(np.array([code[t]]) for t in (left, right, other)))[0])

    assert false_negative("tea", "green tea", "black tea")  # clicked for the same query
    assert false_negative("mug", "blue mug", "holds tea")  # of the same item
    assert false_negative("tea", "green tea", "green tea")
    assert not false_negative("tea", "green tea", "blue mug")
    assert not false_negative("mug", "blue mug", "green tea")


def test_hard_negatives_are_of_the_category_and_never_true(ingest: Path):
    pairs = _gathered(ingest, "titles")
    rows = np.flatnonzero(~pairs.held_out)
    negatives = Negatives(pairs, rows)
    known = {*zip(pairs.left.tolist(), pairs.right.tolist(), strict=True)}
    rng = np.random.default_rng(0)
    same = {True: 0, False: 0}
    for row in rows[:60].tolist():
        for hard in (True, False):
            other = negatives.draw(row, hard, rng)
            assert other is not None and (int(pairs.left[row]), other) not in known
            right = pairs.right[row]
            same[hard] += int(pairs.category[other] == pairs.category[right])
    assert same[True] == 60 and same[False] < 30


def _objective(bert: Path, pairs: Pairs, folder: Path, **settings: object) -> PairsObjective:
    _, tokenizer = open_model(str(bert), where="model")
    tokens = tokenise([pairs.texts], tokenizer, folder / "tokens", longest=16, pieces=False)
    given = {"pairs": {"sources": ["titles"]}, "max_tokens": 32, **settings}
    return PairsObjective(str(bert), pairs, tokens, PairsSettings.model_validate(given))


def test_batches_are_half_true_and_words_are_hidden_beside(
    bert: Path, ingest: Path, tmp_path: Path
):
    objective = _objective(bert, _gathered(ingest, "titles"), tmp_path)
    batch = objective.collate(np.arange(10), np.random.default_rng(0))
    assert batch["together"].tolist() == [1.0, 0.0] * 10
    hidden = batch["labels"] >= 0
    assert hidden.any(1).all()
    assert (batch["token_type_ids"].sum(1) > 0).all()
    # the loss is the sum of that of pairs and that of words
    module = objective.build().eval()
    with torch.inference_mode():
        whole = float(objective.loss(module, batch))
        pairs_alone = float(
            objective.loss(module, {k: v for k, v in batch.items() if k != "labels"})
        )
        logits = module(
            **{k: batch[k] for k in ("input_ids", "attention_mask", "token_type_ids")},
            guessed=hidden,
        )[1]
        words_alone = float(torch.nn.functional.cross_entropy(logits, batch["labels"][hidden]))
    assert whole == pytest.approx(pairs_alone + words_alone, rel=1e-5)


@pytest.mark.long
def test_pairs_are_learned_and_the_head_is_kept(bert: Path, ingest: Path, tmp_path: Path):
    pairs = _gathered(ingest, "titles", held_out=0.1)
    steps = TrainingSettings(epochs=8, batch_size=16, learning_rate=3e-3)
    objective = _objective(bert, pairs, tmp_path, masked=0, hard=0, training=steps)
    before = objective.evaluate(objective.build().eval())
    fitted = train(objective, steps, tmp_path / "model")
    assert fitted.figures["accuracy"] > 0.7 > before["accuracy"] + 0.1
    assert fitted.figures["loss"] < before["loss"]
    assert (tmp_path / "model" / HEAD).is_file()
    open_with_head("mlm", str(tmp_path / "model"), where="model")
    again = PairsObjective(str(tmp_path / "model"), pairs, objective.tokens, objective.settings)
    assert again.evaluate(again.build().eval()) == pytest.approx(fitted.figures, rel=1e-4)


def test_pairs_that_cannot_be_learned_are_refused(bert: Path, ingest: Path, tmp_path: Path):
    with pytest.raises(UserError, match="too few pairs"):
        _gathered(ingest, "queries", events=("purchase",))
    one = Pairs.of([("queries", f"q{at}", "the only item", -1, 0, 0) for at in range(20)], 0.5)
    with pytest.raises(UserError, match="no false pairs"):
        _objective(bert, one, tmp_path)
