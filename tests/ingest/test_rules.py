"""Rules of rows: what each finds, and what `keep`, `mend` and `quarantine` make of it."""

import re
from pathlib import Path

import polars as pl
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from raysys.config import parse_settings
from raysys.datasets.drafting import draft_events
from raysys.datasets.mapping import EventFiles, ItemFiles
from raysys.errors import UserError
from raysys.ingest.bots import SIGNALS
from raysys.ingest.currencies import CODES
from raysys.ingest.encodings import mended
from raysys.ingest.judging import apply
from raysys.ingest.quality import write_report
from raysys.ingest.rule_settings import RuleSettings
from raysys.ingest.rules import ROW, SOURCE, Limits, event_rules, in_words, item_rules, user_rules
from raysys.stages.ingest import FileSource, IngestSettings
from tests.ingest.shop import HEADER, START, good_rows, mapping, take

GOOD = {
    "user_id": "u", "item_id": "i", "event_type": "purchase", "timestamp": str(START),
    "quantity": "1", "price": "10", "currency": "EUR", "query": "", "order_id": "o",
}  # fmt: skip


def rules(**changes):
    content = {
        name: change if isinstance(change, dict) else {"action": change}
        for name, change in changes.items()
    }
    return parse_settings(RuleSettings, content, where="ingest.yaml")


def judge(rows, chosen=None, known=None):
    """Clean rows, quarantine and tally of some rows, each a change of a good one."""
    frame = pl.DataFrame([{**GOOD, **row} for row in rows], schema=dict.fromkeys(GOOD, pl.String))
    files = EventFiles(
        paths="log.csv", columns={name: name for name in GOOD}, time={"unit": "seconds"}
    )
    draft = draft_events(frame, files, where="log.csv").with_columns(
        pl.lit("log.csv").alias(SOURCE), pl.int_range(1, len(rows) + 1).alias(ROW)
    )
    clean, rejected, tally = apply(event_rules(Limits(), chosen, known), draft, frame, "events")
    assert tally.rows_in == len(rows) == tally.rows_out + tally.quarantined
    assert clean.columns == draft.columns
    assert sorted([*clean[ROW], *rejected["row"]]) == list(range(1, len(rows) + 1))
    return clean, rejected, tally


# rule, a row that has the fault, and what mending makes of it
FAULTS = [
    ("mistyped_value", {"price": "dear"}, {"price": None}),
    ("negative_price", {"price": "-1"}, {"price": None}),
    ("impossible_price", {"price": "inf"}, {"price": None}),
    ("quantity_not_positive", {"quantity": "0"}, {"quantity": None}),
    ("impossible_quantity", {"quantity": "nan"}, {"quantity": None}),
    ("currency_spelling", {"currency": " eur"}, {"currency": "EUR"}),
    ("currency_spelling", {"currency": "€"}, {"currency": "EUR"}),
    ("unknown_currency", {"currency": "BEANS"}, {"currency": None}),
    ("broken_encoding", {"query": "caf\ufffd"}, {"query": "caf\ufffd"}),
    ("mojibake", {"query": "cafÃ© crÃ¨me"}, {"query": "café crème"}),
    ("long_text", {"query": "é" * 1001}, {"query": "é" * 1000}),
]


@pytest.mark.parametrize(("rule", "row", "becomes"), FAULTS)
def test_a_fault_is_kept_mended_or_quarantined_as_told(rule, row, becomes):
    allowed = RuleSettings.model_fields[rule].annotation.model_fields["action"].annotation.__args__
    for action in allowed:
        clean, rejected, tally = judge([row, {}], rules(**{rule: action}))
        counts = {
            "keep": tally.kept, "mend": tally.mended, "quarantine": tally.reasons, "off": {},
        }  # fmt: skip
        found = {name: dict(count) for name, count in counts.items() if count}
        assert found == ({} if action == "off" else {action: {rule: 1}})
        assert clean.height == (1 if action == "quarantine" else 2)
        if action == "quarantine":
            assert rejected["reason"].to_list() == [rule]
        if action == "mend":
            assert {name: clean[name][0] for name in becomes} == becomes
            assert clean[1].equals(judge([{}, {}])[0][1])
        if action != "off":
            assert tally.examples[rule][0]["row"] == 1


def test_the_defaults_are_what_the_documentation_promises():
    _, rejected, tally = judge([row for _, row, _ in FAULTS] + [{}])
    assert tally.kept == {"unknown_currency": 1}
    assert tally.mended == {
        "currency_spelling": 2, "broken_encoding": 1, "mojibake": 1, "long_text": 1,
    }  # fmt: skip
    assert rejected["reason"].to_list() == [rule for rule, _, _ in FAULTS[:5]]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"negative_prize": {"action": "keep"}}, "did you mean 'negative_price'"),
        ({"negative_price": {"action": "drop"}}, "'keep', 'mend' or 'quarantine'"),
        ({"missing_value": {"action": "keep"}}, "should be 'quarantine'"),
        ({"bots": {"events_a_minute": 3}}, "did you mean 'events_per_minute'"),
        ({"near_duplicate": {"seconds": {"look": 1}}}, "'look' is none of impression"),
        ({"test_user": {"patterns": ["("]}}, "is no regular expression"),
        ({"foreign_currency": {"action": "mend"}}, "to must say which currency"),
        ({"foreign_currency": {"action": "mend", "to": "EUR"}}, "rates must say"),
        ({"foreign_currency": {"to": "euro"}}, "'euro' is no ISO 4217 code"),
        (
            {"foreign_currency": {"to": "EUR", "rates": {"USD": 0}}},
            "the rate of USD must be above zero",
        ),
        ({"currency_spelling": {"symbols": {"$": "DOLLAR"}}}, "'DOLLAR' is no ISO 4217 code"),
    ],
)
def test_impossible_rules_are_refused_in_words(change, says):
    content = {"source": {"kind": "complete_journey"}, "rules": change}
    with pytest.raises(UserError) as refusal:
        parse_settings(IngestSettings, content, where="ingest.yaml")
    assert says in str(refusal.value)
    assert "rules." in str(refusal.value)


def test_other_currencies_are_converted_where_a_rate_is_given():
    chosen = rules(foreign_currency={"action": "mend", "to": "EUR", "rates": {"USD": 0.5}})
    rows = [{}, {"currency": "usd"}, {"currency": "JPY"}, {"currency": ""}]
    clean, rejected, tally = judge(rows, chosen)
    assert clean["price"].to_list() == [10, 5, 10]
    assert clean["currency"].to_list() == ["EUR", "EUR", None]
    assert tally.mended == {"currency_spelling": 1, "foreign_currency": 1}
    assert rejected["reason"].to_list() == ["no_exchange_rate"]
    kept = rules(foreign_currency={"action": "keep", "to": "EUR"})
    assert judge(rows, kept)[2].kept == {"foreign_currency": 2}


def test_test_users_by_id_and_by_pattern():
    chosen = rules(test_user={"ids": ["7"], "patterns": ["^qa-", "(?i)test"]})
    rows = [{"user_id": user} for user in ("7", "77", "qa-1", "aqa-1", "a.Test", "u")]
    clean, rejected, _ = judge(rows, chosen)
    assert clean["user_id"].to_list() == ["77", "aqa-1", "u"]
    assert set(rejected["reason"]) == {"test_user"}


def test_a_row_goes_for_the_first_reason_and_is_kept_for_all():
    row = {"price": "-1", "currency": "BEANS", "event_type": "stare"}
    assert judge([row])[2].reasons == {"unknown_event_type": 1}
    _, _, tally = judge(
        [{"price": "-1", "currency": "BEANS"}],
        rules(negative_price="keep", unknown_currency="keep"),
    )
    assert tally.kept == {"negative_price": 1, "unknown_currency": 1}


def test_mistyped_values_are_only_dropped_where_the_row_can_do_without():
    rows = [{"timestamp": "noon"}, {"price": "dear"}]
    clean, rejected, tally = judge(rows, rules(mistyped_value="mend"))
    assert rejected["row"].to_list() == [1]
    assert clean["price"].to_list() == [None]
    assert tally.mended == {"mistyped_value": 1}


def test_items_that_the_catalogue_does_not_know():
    rows = [{}, {"item_id": "x"}, {"item_id": "", "event_type": "search"}]
    known = pl.Series(["i", "j"])
    assert judge(rows, None, known)[2].kept == {"unknown_item": 1}
    clean, rejected, _ = judge(rows, rules(unknown_item="quarantine"), known)
    assert clean["item_id"].to_list() == ["i", None]
    assert rejected["reason"].to_list() == ["unknown_item"]
    assert judge(rows, rules(unknown_item="quarantine"))[2].quarantined == 0


def test_events_older_than_their_item_and_prices_far_from_the_catalogue():
    known = pl.DataFrame(
        {
            "item_id": ["i", "new", "dear"],
            "available_from": [None, START * 1000 + 86_400_001, START * 1000 + 86_400_000],
            "price": [10.0, None, 1000.0],
            "currency": ["EUR", None, "USD"],
        }
    )
    rows = [
        {"item_id": "new"}, {"item_id": "dear"}, {"price": "201"}, {"price": "0.49"},
        {"price": "200"}, {"price": "201", "event_type": "view"}, {"price": "0"},
    ]  # fmt: skip
    clean, rejected, tally = judge(rows, None, known)
    assert rejected["row"].to_list() == [1]
    assert rejected["reason"].to_list() == ["before_item_existed"]
    assert tally.kept == {"odd_price": 2}
    assert clean["item_id"].to_list() == ["dear", *"iiiii"]
    off = rules(before_item_existed="off", odd_price="off")
    assert judge(rows, off, known)[2].kept == {}
    strict = rules(before_item_existed={"slack_hours": 0})
    assert judge(rows, strict, known)[1]["row"].to_list() == [1, 2]


def test_refunds_wait_for_the_day_when_they_shall_be_mended():
    rows = [{"quantity": "-2"}, {"event_type": "refund", "price": "-5"}, {"event_type": "stare"}]
    clean, rejected, _ = judge(rows)
    assert rejected["reason"].to_list() == ["refund", "refund", "unknown_event_type"]
    clean, rejected, _ = judge(rows, rules(refund="mend"))
    assert clean["quantity"].to_list() == [-2, 1]
    assert rejected["reason"].to_list() == ["unknown_event_type"]


WORDS = ("café", "crème brûlée", "Müsli", "Größe 42", "señorita", "smørrebrød", "façade", "Äpfel")


@settings(deadline=None, max_examples=80)
@given(st.lists(st.sampled_from(WORDS), min_size=1, max_size=3), st.sampled_from([1, 2]))
def test_mojibake_is_undone_and_good_text_left_alone(words, times):
    text = wrong = " ".join(words)
    for _ in range(times):
        wrong = wrong.encode().decode("latin-1")
    values = pl.Series([wrong, text, None, "plain", "ÂNGELA", "PÃO"])
    assert mended(values).to_list() == [text, text, None, "plain", "ÂNGELA", "PÃO"]


def test_every_rule_has_a_sentence_and_a_setting():
    words = in_words(Limits())
    known = pl.Series(["i"])
    asked = [*event_rules(Limits(), None, known), *item_rules(Limits()), *user_rules(Limits())]
    assert {rule.name for rule in asked} <= set(words)
    assert {rule.name for rule in asked} <= set(RuleSettings.model_fields)
    assert set(RuleSettings.model_fields) - {"bots"} <= set(words)


def test_the_page_names_every_rule_and_its_yaml_loads():
    page = (Path(__file__).parents[2] / "docs/ingest.md").read_text(encoding="utf-8")
    names = set(re.findall(r"`(\w+)`", page))
    assert {*RuleSettings.model_fields, *SIGNALS, "refunded_purchase", "partly_refunded"} <= names
    blocks = [yaml.safe_load(b) for b in re.findall(r"^```yaml\n(.*?)^```", page, re.M | re.S)]
    (chosen,) = (block["rules"] for block in blocks if "rules" in block)
    assert parse_settings(RuleSettings, chosen, where="docs").bots.active_hours == 20
    (log,) = (block["events"] for block in blocks if "events" in block)
    assert parse_settings(FileSource, {"events": log}, where="docs").events[0].optional


def test_codes_are_three_capitals():
    assert all(len(code) == 3 and code.isalpha() and code.isupper() for code in CODES)
    assert len(CODES) > 170


def test_rules_of_a_whole_run_and_what_its_report_says(tmp_path):
    day = 86_400
    lines = [
        HEADER,
        *good_rows(),
        f"b,u1,i1,view,{START},-1,1,",
        f"c,qa-1,i1,view,{START},1,1,",
        f"d,u1,new,view,{START},1,1,",
        f"e,u1,i1,purchase,{START},900,1,",
        *(f"r{i},robot,i{i % 7},view,{START + 10 * i},1,1," for i in range(200)),
    ]
    (tmp_path / "log.csv").write_text("\n".join(lines))
    items = [f"i{i},5,{START - 2 * day}" for i in range(7)] + [f"new,5,{START + 2 * day}"]
    (tmp_path / "items.csv").write_text("\n".join(["id,price,since", *items]))
    catalogue = ItemFiles(
        paths=str(tmp_path / "items.csv"),
        columns={"item_id": "id", "price": "price", "available_from": "since"},
        time={"unit": "seconds"},
    )
    chosen = rules(
        negative_price="keep", test_user={"patterns": ["^qa-"]}, bots={"action": "quarantine"}
    )
    taken = take(tmp_path, mapping(tmp_path / "log.csv"), items=(catalogue,), rules=chosen)
    assert taken.tally.reasons == {"test_user": 1, "before_item_existed": 1, "bot_regular": 200}
    assert taken.tally.kept == {"negative_price": 1, "odd_price": 1}
    assert taken.tally.users == {"bot_regular": 1}
    since = taken.items.filter(pl.col("item_id") == "new")["available_from"].dt.epoch("s")
    assert since.to_list() == [START + 2 * day]
    write_report(taken.outcome, "A shop", Limits(), tmp_path / "report.html", chosen)
    page = (tmp_path / "report.html").read_text()
    assert "kept, flagged" in page
    assert "bot regular" in page
    assert "gap_variation" in page
    assert "were put aside" in page
