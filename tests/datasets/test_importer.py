"""What importers share, and how the ingest stage comes by them."""

import json
import pickle

import polars as pl
import pytest

from raysys.config import find_config, load_settings, parse_settings
from raysys.datasets.drafting import draft_events
from raysys.datasets.files import find, read
from raysys.datasets.importer import counted, listed_text, moments, pick, place, settled, unroll
from raysys.datasets.source import RECORD
from raysys.errors import UserError
from raysys.ingest.judging import apply
from raysys.ingest.rules import ROW, SOURCE, Limits, event_rules
from raysys.stages.ingest import IngestSettings, _source
from tests.datasets.importing import FIXTURES, events_of

LOGS = {
    "ubi": {"queries": "ubi_queries.jsonl", "events": "ubi_events.jsonl"},
    "ga4": {"paths": "ga4_events_20240601.jsonl"},
    "snowplow": {"paths": "snowplow.tsv"},
    "metarank": {"paths": "metarank.jsonl", "event_types": {"return": "refund"}},
}
kinds = pytest.mark.parametrize("kind", LOGS)


def of(kind):
    told = LOGS[kind].items()
    told = {key: str(FIXTURES / name) if isinstance(name, str) else name for key, name in told}
    content = {"source": {"kind": kind, **told}}
    return _source(parse_settings(IngestSettings, content, where="ingest.yaml"))


@kinds
def test_the_preset_names_a_source(kind):
    settings = load_settings(IngestSettings, find_config(kind, "ingest"))
    assert settings.source.kind == kind
    assert settings.model_dump(mode="json")["source"]["kind"] == kind


@kinds
def test_a_source_crosses_processes_and_gives_the_same(kind):
    source = of(kind)
    here, ignored, _ = events_of(source)
    there, as_well, _ = events_of(pickle.loads(pickle.dumps(source)))  # noqa: S301
    assert here.equals(there)
    assert ignored == as_well


@kinds
def test_the_rules_tell_what_is_wrong_with_rows_and_keep_the_record(kind):
    source = of(kind)
    reasons = set()
    for part in find(source.events[0]):
        for block in read(part, source.events[0]):
            rows = source.expand_events(block.rows).rows
            at = rows[RECORD]
            draft = draft_events(rows, source.events[0], where=part.label).with_columns(
                pl.lit(part.label).alias(SOURCE), block.numbers.gather(at).alias(ROW)
            )
            records = block.rows[at.to_list()]
            clean, bad, _ = apply(event_rules(Limits()), draft, records, "events")
            assert clean.height + bad.height == at.len()
            assert set(bad["row"]) <= set(block.numbers)
            assert clean.height
            reasons |= set(bad["reason"])
    assert "missing_value" in reasons
    assert "refund" in reasons


@kinds
def test_what_was_kept_of_a_file_is_known_by_all_that_it_depends_on(kind):
    def digest(**more):
        files = {key: name for key, name in LOGS[kind].items() if key != "event_types"}
        content = {"source": {"kind": kind, **files, **more}}
        source = _source(parse_settings(IngestSettings, content, where="ingest.yaml"))
        return json.dumps(source.events[0].model_dump(mode="json", exclude={"paths"}))

    assert digest() == digest()
    assert digest() != digest(event_types={"scroll": "view"})


def test_an_unknown_kind_is_told_with_those_that_are():
    with pytest.raises(UserError, match="'ubi', 'ga4', 'snowplow', 'metarank'"):
        parse_settings(IngestSettings, {"source": {"kind": "matomo"}}, where="ingest.yaml")


def test_many_different_words_are_counted_together():
    words = pl.Series("word", [f"w{n}" for n in range(60)] + ["often"] * 3)
    told = counted(words, "not_an_event")
    assert next(iter(told.items())) == ("not_an_event: often", 3)
    assert told["not_an_event: (others)"] == 11
    assert sum(told.values()) == 63


def test_lists_become_rows_with_their_places():
    frame = pl.DataFrame({"n": [0, 1, 2], "l": [["a", "b"], [], None]})
    assert unroll(frame, "l").rows() == [(0, "a", 1), (0, "b", 2), (1, None, None), (2, None, None)]


def test_of_pairs_the_first_that_says_something_is_picked():
    pairs = [
        [{"k": "a", "v": ""}, {"k": "a", "v": "1"}, {"k": "a", "v": "2"}, {"k": "b", "v": "3"}],
        [None, {"k": None, "v": "9"}],
        None,
    ]
    frame = pl.DataFrame({"p": pairs}).with_row_index(RECORD)
    value = pl.col("p").struct.field("v")
    assert pick(frame, "p", "k", value, {"x": "a", "y": "c", "z": "a"}).rows() == [
        (0, "1", None, "1"),
        (1, None, None, None),
        (2, None, None, None),
    ]


def test_positions_are_one_based_or_nothing():
    told = pl.DataFrame({"t": ["0", "1", "2.0", " 3", "-1", "Slide 3", "1e99", "", None]})
    assert told.select(place(pl.col("t"), 0)).to_series().to_list() == [
        1, 2, 3, 4, None, None, None, None, None,
    ]  # fmt: skip
    assert told.select(place(pl.col("t"), 1)).to_series().to_list()[:2] == [None, 1]


def test_quantities_are_of_what_moved():
    frame = pl.DataFrame(
        {
            "event_type": ["refund", "refund", "refund", "cart", "view", "search", "search", None],
            "quantity": ["2", None, "some", "3", "4", None, None, None],
            "query": [None, None, None, None, None, "words", " ", None],
        }
    )
    assert settled(frame).select("event_type", "quantity").rows() == [
        ("purchase", "-2.0"),
        ("purchase", "-1.0"),
        ("purchase", "some"),  # the mapping will name it
        ("cart", "3"),
        ("view", None),
        ("search", None),
        (None, None),
        (None, None),
    ]


def test_moments_are_iso_or_milliseconds():
    frame = pl.DataFrame({"t": ["2024-06-01T10:00:00Z", " 1717236000000", "soon", None]})
    told = moments(frame, "t").to_list()
    assert told == ["1717236000000", "1717236000000", "soon", None]


def test_lists_of_words_are_words():
    texts = pl.DataFrame({"t": ['["a", "b c"]', '["a"]', "[1, 2]", "a, b", None]})
    told = texts.select(listed_text(pl.col("t"))).to_series().to_list()
    assert told == ["a, b c", "a", "[1, 2]", "a, b", None]
