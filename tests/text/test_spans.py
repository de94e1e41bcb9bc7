from __future__ import annotations

import itertools
import time

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raysys import schema
from raysys.errors import UserError
from raysys.text.spans import Span, Taken, attributes_to_spans, spans_of, without_overlaps
from raysys.text.tags import Lost, Scheme, Tags
from raysys.text.units import Splitter, Units, pieces

LABELS = ("brand", "model", "size")
odd_text = st.text(
    st.one_of(
        st.sampled_from("aZé İßǅ09.,'\"-/()\t\n\u00a0\u3000🙂👩\u200d🔬\u0301小米ไทย\ud7ff"),
        st.characters(codec="utf-8"),
    ),
    max_size=60,
)


@given(odd_text)
def test_units_are_all_that_is_visible_in_order(text: str) -> None:
    units = Splitter()(text)
    assert "".join(units.words) == "".join(c for c in text if not c.isspace())
    ends = [0]
    for start, end in units.pieces:
        assert ends[-1] <= start < end and not any(map(str.isspace, text[start:end]))
        ends.append(end)


@st.composite
def tagged(draw: st.DrawFn) -> tuple[Units, list[Span]]:
    """A text, and spans of it that begin and end with units and share none."""
    units = Splitter(frozenset({"aze"}), ("zé", "a"))(draw(odd_text))
    spans, at = [], 0
    while at < len(units):
        first = draw(st.integers(at, len(units)))
        if first == len(units):
            break
        last = draw(st.integers(first + 1, min(len(units), first + 5)))
        label = draw(st.sampled_from(LABELS))
        spans.append(Span(units.pieces[first][0], units.pieces[last - 1][1], label))
        at = last
    return units, spans


@pytest.mark.parametrize("scheme", ["bio", "bioes"])
@given(made=tagged())
def test_spans_to_tags_to_spans_is_where_one_began(
    scheme: Scheme, made: tuple[Units, list[Span]]
) -> None:
    units, spans = made
    tags, lost = Tags(LABELS, scheme), Lost()
    encoded = tags.encode(units, spans, {}, lost)
    assert lost == Lost(spans=len(spans))
    assert tags.decode(units, encoded.tolist()) == spans
    path, allowed, n = [len(tags), *encoded.tolist(), len(tags)], tags.allowed(), len(tags)
    assert all(allowed[a, b] for a, b in itertools.pairwise(path) if not a == b == n)


@given(odd_text, st.data())
def test_any_spans_are_encoded_and_what_is_lost_is_counted(text: str, data: st.DataObject) -> None:
    units = Splitter()(text)
    place = st.integers(0, max(len(text) - 1, 0))
    spans = []
    for _ in range(data.draw(st.integers(0, 6)) if text else 0):
        start = data.draw(place)
        end = data.draw(st.integers(start + 1, len(text)))
        spans.append(Span(start, end, data.draw(st.sampled_from(LABELS))))
    tags, lost = Tags(LABELS), Lost()
    back = tags.decode(units, tags.encode(units, spans, {}, lost).tolist())
    assert lost.spans == len(set(spans))
    assert len(back) == lost.spans - lost.overlapping - lost.blank
    exact = {(s.label, text[s.start : s.end].strip()) for s in spans}
    widened = [s for s in back if (s.label, text[s.start : s.end]) not in exact]
    assert len(widened) <= lost.widened


def test_words_are_cut_where_labels_part_them() -> None:
    titles = ["Mens shirt", "Jerseys for men", "2 mens caps", "Boys jersey"]
    known = [(0, 3), (0, 6), (2, 5), (0, 3)]
    splitter = Splitter.fit((t, [s]) for t, s in zip(titles, known, strict=True))
    assert splitter("MENS dress JERSEYS boss").words == ["MEN", "S", "dress", "JERSEY", "S", "boss"]
    assert Splitter.from_json(splitter.to_json()) == splitter
    assert Splitter.fit([("Mens shirt", [(0, 3)])]) == Splitter()  # seen once: may be a slip


def test_kinds_of_characters_part_units() -> None:
    def words(text: str) -> list[str]:
        return [text[start:end] for start, end in pieces(text)]

    assert words("500ml YA24a 8.5 oz") == ["500", "ml", "YA", "24", "a", "8", ".", "5", "oz"]
    assert words("O'Neill(L)") == ["O", "'", "Neill", "(", "L", ")"]
    assert words("小米手机 Mi10") == ["小", "米", "手", "机", "Mi", "10"]
    assert words("cafe\u0301 हिन्दी") == ["cafe\u0301", "हिन्दी"]


def test_attributes_are_found_as_a_reader_would() -> None:
    text = "Acme  Pro MENS Shirt\tmen, acme pro 2XL"
    found = attributes_to_spans(
        text,
        {"brand": "ACME Pro", "gender": "Men", "size": "2xl", "colour": "n/a", "fit": None,
         "style": ["", "slim"]},
    )  # fmt: skip
    said = [(text[s.start : s.end], s.label) for s in found.spans]
    assert said == [
        ("Acme  Pro", "brand"), ("men", "gender"), ("acme pro", "brand"), ("2XL", "size"),
    ]  # fmt: skip
    assert found.missed == (("style", "slim"),) and found.within_words == 0
    first = attributes_to_spans(text, {"brand": "acme pro"}, occurrences="first")
    assert [s.start for s in first.spans] == [0]


def test_a_value_within_a_word_counts_where_no_word_says_it() -> None:
    found = attributes_to_spans("Womens and Mens shirts", {"gender": "Men"})
    assert found.spans == (Span(11, 14, "gender"),) and found.within_words == 1
    assert attributes_to_spans("Omen", {"gender": "men"}).spans == (Span(1, 4, "gender"),)
    assert attributes_to_spans("小米手机", {"brand": "小米"}).spans == (Span(0, 2, "brand"),)


@given(odd_text, odd_text, odd_text)
def test_what_is_located_is_the_value(before: str, value: str, after: str) -> None:
    text = before + value + after
    found = attributes_to_spans(text, {"x": value}, absent=())
    if not value.strip():
        assert found.spans == () and found.missed == ()
        return
    assert found.spans and not found.missed
    for span in found.spans:
        same = text[span.start : span.end].split()
        assert [a.casefold() for a in same] == [b.casefold() for b in value.split()] or [
            a.upper() for a in same
        ] == [b.upper() for b in value.split()]


def test_of_spans_that_overlap_the_longer_and_the_more_frequent_stay() -> None:
    spans = [
        Span(0, 4, "a"),
        Span(2, 9, "b"),
        Span(9, 12, "c"),
        Span(9, 12, "d"),
        Span(12, 13, "a"),
    ]
    kept, dropped = without_overlaps(spans, {"c": 1, "d": 5})
    assert kept == [Span(2, 9, "b"), Span(9, 12, "d"), Span(12, 13, "a")] and dropped == 2


places = st.tuples(st.integers(0, 25), st.integers(1, 8)).map(lambda x: (x[0], x[0] + x[1]))


def one_by_one(order: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The rule in words: of places in an order each is kept that meets none kept before."""
    kept: list[tuple[int, int]] = []
    for start, end in order:
        if all(end <= other[0] or other[1] <= start for other in kept):
            kept.append((start, end))
    return kept


@given(st.lists(places, max_size=30))
def test_places_are_taken_as_if_each_was_held_against_each(order: list[tuple[int, int]]) -> None:
    taken = Taken()
    assert [place for place in order if taken.takes(*place)] == one_by_one(order)


def test_of_many_spans_that_overlap_some_are_kept_in_a_moment() -> None:
    spans = [Span(at, at + 1, "a") for at in range(0, 200_000, 2)]
    began = time.process_time()
    kept, dropped = without_overlaps(spans, {})
    assert kept == spans and not dropped
    assert time.process_time() - began < 20  # each against each takes hours


def test_spans_outside_of_their_text_are_refused() -> None:
    row = {"text_id": "0", "text": "ab", "split": "train"}
    for start, end in ((0, 3), (1, 1), (-1, 1)):
        spans = [{"start": start, "end": end, "label": "x"}]
        table = pa.Table.from_pylist([row | {"spans": spans}], schema=schema.LABELLED_TEXTS)
        with pytest.raises(UserError, match="does not lie in its text of 2 characters"):
            spans_of(table)
    with pytest.raises(UserError, match="no column 'spans'"):
        spans_of(pa.table({"text": ["a"]}))
