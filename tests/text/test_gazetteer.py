from __future__ import annotations

import json

from raysys.text.gazetteer import Gazetteer
from raysys.text.units import Splitter, Units

Spans = list[tuple[int, int, str]]


def _shop() -> list[tuple[Units, Spans]]:
    cut = Splitter()
    return [
        (cut("Acme rod YA24 20 oz"), [(0, 1, "brand"), (2, 4, "model"), (4, 6, "size")]),
        (cut("Acme lure YA77 3 oz"), [(0, 1, "brand"), (2, 4, "model"), (4, 6, "size")]),
        (cut("rod for Acme lovers"), []),
    ]


def _said(gazetteer: Gazetteer, text: str) -> dict[tuple[str, str], float]:
    units = Splitter()(text)
    return {
        (" ".join(units.words[m.first : m.last]), m.label): round(m.trust, 3)
        for m in gazetteer.matches(units)
    }


def test_values_are_known_as_words_as_numbers_and_as_shapes() -> None:
    gazetteer = Gazetteer.fit(_shop())
    assert _said(gazetteer, "ACME thing") == {("ACME", "brand"): 0.5}  # 2 of 3 places, 1 in doubt
    assert _said(gazetteer, "tea 8.5 oz") == {
        ("8 . 5 oz", "size"): 0.667,
        ("5 oz", "size"): 0.667,
    }
    assert _said(gazetteer, "XB1801") == {("XB 1801", "model"): 0.667}
    # in lower case and spaced it is no such shape, but a known word with a number
    assert _said(gazetteer, "xb1801 and YA 24") == {("YA 24", "model"): 0.667}


def test_a_training_text_does_not_tell_itself() -> None:
    texts = _shop()
    gazetteer = Gazetteer.fit(texts)
    units, own = texts[0]
    by_itself = {(m.first, m.last, m.way): m.trust for m in gazetteer.matches(units, own)}
    others = Gazetteer.fit(texts[1:])
    assert by_itself == {(m.first, m.last, m.way): m.trust for m in others.matches(units)}
    assert (4, 6, 0) not in by_itself and (4, 6, 1) in by_itself


def test_a_gazetteer_is_the_same_from_json() -> None:
    gazetteer = Gazetteer.fit(_shop())
    again = Gazetteer.from_json(json.loads(json.dumps(gazetteer.to_json())))
    assert again == gazetteer
