"""`raysys benchmark relevance`: any file, split by query, within a budget; what it refuses."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from typer.testing import CliRunner

from raysys.cli import app
from raysys.errors import UserError
from raysys.stages import benchmark_relevance, relevance_encoders, relevance_members
from raysys.stages.benchmark_pairs import read_pairs
from raysys.stages.benchmark_relevance import join_members
from raysys.stages.relevance_judging import (
    Ground,
    Judge,
    Member,
    best_on_validation,
    figures_of,
    least_products,
)
from raysys.text.pairs import Pairs
from tests.text.tiny import write_tiny_bert

COLOURS = ("red", "green", "blue", "black", "white")
THINGS = ("shirt", "lamp", "chair", "kettle", "rug", "desk", "mug", "sofa")


def judged(n_queries: int = 40, products: int = 8, seed: int = 0) -> pl.DataFrame:
    """A query names colour and thing; a product's grade is how many of the two it has."""
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(n_queries):
        thing, colour = THINGS[number % 8], COLOURS[(number // 8) % 5]
        for _ in range(products):
            one = thing if rng.random() < 0.5 else str(rng.choice(THINGS))
            other = colour if rng.random() < 0.5 else str(rng.choice(COLOURS))
            rows.append(
                {
                    "search": f"{colour} {thing}",
                    "title": f"{other} {one} no. {len(rows)}",
                    "stars": float((one == thing) + (other == colour)),
                }
            )
    return pl.DataFrame(rows)


def read(path: Path, label: str = "stars", **more: object) -> object:
    return read_pairs(path, "search", ["title"], label, **more)  # type: ignore[arg-type]


def test_every_format_says_the_same(tmp_path: Path) -> None:
    frame = judged()
    frame.write_csv(tmp_path / "a.csv")
    frame.write_csv(tmp_path / "a.tsv", separator="\t")
    frame.write_ndjson(tmp_path / "a.jsonl")
    frame.write_parquet(tmp_path / "a.parquet")
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress((tmp_path / "a.csv").read_bytes()))
    found = [read(path).table for path in sorted(tmp_path.iterdir())]  # type: ignore[attr-defined]
    assert len(found) == 5
    assert all(table.equals(found[0]) for table in found)


def test_no_query_is_in_two_splits_whatever_its_case(tmp_path: Path) -> None:
    frame = judged()
    frame = pl.concat([frame, frame.with_columns(pl.col("search").str.to_uppercase())])
    frame.write_csv(tmp_path / "a.csv")
    table = read(tmp_path / "a.csv").table  # type: ignore[attr-defined]
    parts = [
        {query.lower() for query in part["query"].to_pylist()}
        for name in ("train", "validation", "test")
        for part in [table.filter(np.array(table["split"].to_pylist()) == name)]
    ]
    assert [len(part) for part in parts] == [29, 3, 8]
    assert len(set.union(*parts)) == 40


def test_rows_that_say_nothing_are_left_out_and_counted(tmp_path: Path) -> None:
    frame = judged()
    hole = pl.DataFrame({"search": ["red mug", None], "title": [" ", "x"], "stars": [1.0, 2.0]})
    unjudged = pl.DataFrame({"search": ["red mug"], "title": ["mug"], "stars": [None]})
    pl.concat([frame, hole, unjudged], how="vertical_relaxed").write_csv(tmp_path / "a.csv")
    assert read(tmp_path / "a.csv").dropped == 3  # type: ignore[attr-defined]
    few = read(tmp_path / "a.csv", queries=20)
    assert few.dropped == 3  # type: ignore[attr-defined]  # queries not drawn are not at fault


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.drop("title"), "no column 'title'"),
        (lambda f: f.with_columns(stars=pl.lit("so so")), "no numbers.*'so so' 320"),
        (lambda f: f.with_columns(stars=pl.lit("good")), "every label is 1"),
        (lambda f: f.with_columns(stars=pl.lit(2.0)), "every label is 2"),
        (lambda f: f.with_columns(search=pl.lit("mug")), "1 query: too few"),
        (lambda f: f.clear(), "no row has"),
        (lambda f: f.with_columns(stars=pl.lit("inf")), "no numbers"),
    ],
)
def test_files_that_cannot_work_are_refused(tmp_path: Path, change: object, message: str) -> None:
    change(judged()).write_csv(tmp_path / "a.csv")  # type: ignore[operator]
    with pytest.raises(UserError, match=message):
        read(tmp_path / "a.csv")


def test_what_is_no_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        read(tmp_path / "none.csv")
    (tmp_path / "a.xlsx").write_bytes(b"x")
    with pytest.raises(UserError, match="unknown kind"):
        read(tmp_path / "a.xlsx")
    (tmp_path / "a.parquet").write_bytes(b"not at all")
    with pytest.raises(UserError, match="cannot be read as parquet"):
        read(tmp_path / "a.parquet")


def test_quotes_in_a_tsv_mean_what_the_file_means(tmp_path: Path) -> None:
    """Inches and emphasis as they stand; fields that a quoting writer wrote, with lines within."""
    frame = judged().with_columns(
        title=pl.concat_str(pl.lit('"Best" 5" '), pl.col("title"), pl.lit(' "'))
    )
    rows = ["\t".join(frame.columns), *("\t".join(map(str, row)) for row in frame.rows())]
    (tmp_path / "bare.tsv").write_text("\n".join(rows) + "\n")
    frame.write_csv(tmp_path / "quoted.tsv", separator="\t")
    bare, quoted = (read(tmp_path / f"{name}.tsv").table for name in ("bare", "quoted"))  # type: ignore[attr-defined]
    assert bare.equals(quoted) and bare.num_rows == frame.height
    number = pl.int_range(pl.len()).cast(pl.String)
    opened = frame.with_columns(title=pl.concat_str(pl.lit('"'), "search", pl.lit(" "), number))
    rows = ["\t".join(frame.columns), *("\t".join(map(str, row)) for row in opened.rows())]
    (tmp_path / "opened.tsv").write_text("\n".join(rows) + "\n")
    assert read(tmp_path / "opened.tsv").table.num_rows == frame.height  # type: ignore[attr-defined]
    lines = frame.with_columns(title=pl.concat_str(pl.col("title"), pl.lit("\nsecond line")))
    lines.write_csv(tmp_path / "lines.tsv", separator="\t")
    table = read(tmp_path / "lines.tsv").table  # type: ignore[attr-defined]
    assert table.num_rows == frame.height
    assert all(text.endswith("second line") for text in table["text"].to_pylist())


@pytest.mark.parametrize("encoding", ["cp1252", "utf-16", "utf-8-sig"])
def test_other_encodings_are_read(tmp_path: Path, encoding: str) -> None:
    frame = judged().with_columns(title=pl.concat_str(pl.lit("café "), pl.col("title")))
    (tmp_path / "a.csv").write_bytes(frame.write_csv().encode(encoding))
    table = read(tmp_path / "a.csv").table  # type: ignore[attr-defined]
    assert table.num_rows == frame.height
    assert all(text.startswith("café ") for text in table["text"].to_pylist())


def test_lists_are_joined_and_yes_is_one(tmp_path: Path) -> None:
    frame = judged().with_columns(
        title=pl.concat_list(pl.col("title"), pl.lit("a point")), stars=pl.col("stars") > 1
    )
    frame.write_ndjson(tmp_path / "a.jsonl")
    frame.write_parquet(tmp_path / "a.parquet")
    lines, parquet = (read(path).table for path in sorted(tmp_path.iterdir()))  # type: ignore[attr-defined]
    assert lines.equals(parquet)
    assert set(lines["grade"].to_pylist()) == {0.0, 1.0}
    assert all(text.endswith(". a point") for text in lines["text"].to_pylist())
    for no, yes in (("no", "Yes"), ("FALSE", "true")):
        words = judged().with_columns(
            stars=pl.when(pl.col("stars") > 1).then(pl.lit(yes)).otherwise(pl.lit(no))
        )
        words.write_csv(tmp_path / "words.csv")
        told = read(tmp_path / "words.csv").table  # type: ignore[attr-defined]
        assert told["grade"].equals(lines["grade"])
    nested = frame.with_columns(title=pl.struct("title"))
    nested.write_parquet(tmp_path / "nested.parquet")
    with pytest.raises(UserError, match="column 'title' holds Struct"):
        read(tmp_path / "nested.parquet")


def test_a_damaged_gzip_is_named(tmp_path: Path) -> None:
    packed = bytearray(gzip.compress(judged().write_csv().encode()))
    for at in range(60, 70):
        packed[at] ^= 0xFF
    (tmp_path / "a.csv.gz").write_bytes(packed)
    with pytest.raises(UserError, match="cannot be read as csv"):
        read(tmp_path / "a.csv.gz")


def test_of_a_file_too_large_for_its_time_fewer_queries_are_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged(120, 10).write_csv(tmp_path / "a.csv")
    monkeypatch.setattr(benchmark_relevance, "PROBE_PAIRS", 300)
    probed = []

    def fitted(ground: Ground, budget: object) -> tuple[dict[str, Member], dict[str, str]]:
        rng = np.random.default_rng(0)
        said = {name: np.float32(rng.random(len(each))) for name, each in ground.pairs.items()}
        return {"relevance_trees": Member(said, {}, 0.0)}, {}

    def ran(seconds_a_pair: float) -> dict[str, int]:
        def pace(ground: Ground) -> float:
            pairs = sum(map(len, ground.pairs.values()))
            probed.append(pairs)
            return seconds_a_pair * pairs

        monkeypatch.setattr(benchmark_relevance, "seconds_of_features", pace)
        options = {"query_col": "search", "text_cols": ["title"], "label_col": "stars"}
        found = benchmark_relevance.run(tmp_path / "a.csv", minutes=60, **options)  # type: ignore[arg-type]
        return found["queries"]  # type: ignore[no-any-return]

    monkeypatch.setattr(benchmark_relevance, "fit_members", fitted)
    whole = ran(0.01)
    names = sum(whole.values())
    # two seconds a pair, of which a quarter of an hour makes 450
    some = sum(ran(2.0).values())
    pairs = 1200
    assert some == pytest.approx(names * 450 / pairs, abs=1)
    assert probed and max(probed) < pairs / 2


def test_several_judgements_of_a_pair_are_one(tmp_path: Path) -> None:
    """However the query is spelt: the mean of its raters, who weigh as many as they are."""
    frame = judged(20)
    raters = [
        frame.with_columns(
            search=pl.col("search").str.to_uppercase() if number == 1 else pl.col("search"),
            stars=pl.col("stars") + number,
        )
        for number in range(3)
    ]
    pl.concat(raters).write_csv(tmp_path / "a.csv")
    found = read(tmp_path / "a.csv")
    frame.write_csv(tmp_path / "b.csv")
    once = read(tmp_path / "b.csv")
    assert found.merged == 2 * frame.height and once.merged == 0  # type: ignore[attr-defined]
    many, one = (pl.DataFrame(each.table) for each in (found, once))  # type: ignore[attr-defined]
    assert many.drop("grade", "weight").equals(one.drop("grade", "weight"))
    assert (many["grade"] - one["grade"]).to_list() == pytest.approx([1.0] * frame.height)
    assert set(many["weight"]) == {3.0}


@pytest.mark.long
def test_a_rare_grade_is_in_what_the_pace_is_measured_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a transformer that fails is skipped, with its reason; the others are kept."""
    monkeypatch.setattr(relevance_encoders, "PROBE", 2)
    rare = judged(40).with_columns(stars=(pl.int_range(pl.len()) % 20 == 0).cast(pl.Float64))
    rare.write_csv(tmp_path / "a.csv")
    tiny = str(write_tiny_bert(tmp_path / "tiny"))
    ground = Ground.of(read(tmp_path / "a.csv"), 0, model=tiny)  # type: ignore[arg-type]
    fits = relevance_encoders._Fits("cross_encoder", ground, 60, tmp_path / "fit")
    assert fits.pace(48).step > 0

    def fails(*_: object) -> Member:
        raise UserError("the loss is nan", where="cross_encoder")

    monkeypatch.setattr(relevance_members, "fit_encoder", fails)
    members, skipped = relevance_members.fit_members(ground, relevance_members.Budget(600))
    assert "relevance_trees" in members
    assert all("the loss is nan" in skipped[name] for name in ("cross_encoder", "bi_encoder"))


@pytest.mark.parametrize("name", ["bi_encoder", "cross_encoder"])
def test_two_epochs_see_every_pair_of_a_long_list_twice(tmp_path: Path, name: str) -> None:
    judged(40, 60).write_csv(tmp_path / "a.csv")
    ground = Ground.of(read(tmp_path / "a.csv"), 0)  # type: ignore[arg-type]
    fits = relevance_encoders._Fits(name, ground, 60, tmp_path)
    each = fits.batch * (relevance_encoders.LIST if name == "bi_encoder" else 1)
    assert fits.whole * each == pytest.approx(len(ground.pairs["train"]), rel=0.1)


def test_a_fold_without_time_is_not_half_of_an_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged(20, 6).write_csv(tmp_path / "a.csv")
    ground = Ground.of(read(tmp_path / "a.csv"), 0)  # type: ignore[arg-type]
    fits = relevance_encoders._Fits("cross_encoder", ground, 0.0, tmp_path)
    monkeypatch.setattr(fits, "fit", lambda *_: None)
    said = fits.member(relevance_encoders.Pace(48, 1.0, 0.1), 100)
    assert isinstance(said, str) and "100 steps" in said


def test_few_long_lists_do_not_speak_for_all() -> None:
    assert least_products(np.array([5, 9, 3, 1])) == 5
    assert least_products(np.array([5, *[3] * 40])) == 2
    assert least_products(np.array([1, 1])) == 2
    assert least_products(np.array([7, *[1] * 40])) == 5  # one product is no order


@pytest.mark.long
@pytest.mark.parametrize("name", ["bi_encoder", "cross_encoder"])
def test_a_transformer_is_fitted_as_far_as_its_time_goes(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Out of fold on train; too little time is a reason, not a failure."""
    monkeypatch.setattr(relevance_encoders, "PROBE", 4)
    # by grade: the first rows have one alone
    judged(20, 6).sort("stars").write_csv(tmp_path / "a.csv")
    tiny = str(write_tiny_bert(tmp_path / "tiny"))
    ground = Ground.of(read(tmp_path / "a.csv"), 0, model=tiny)  # type: ignore[arg-type]
    member = relevance_encoders.fit_encoder(name, ground, 600, tmp_path / "fit")
    assert not isinstance(member, str), member
    for split, pairs in ground.pairs.items():
        assert member.said[split].shape == (len(pairs),)
        assert np.isfinite(member.said[split]).all()
    assert member.settings["training"]["max_steps"] == 20
    ensembles = join_members(ground, {name: member, "relevance_trees": member}, 0)
    assert set(ensembles) == {"weighted_grades", "order"}
    refused = relevance_encoders.fit_encoder(name, ground, 5, tmp_path / "refused")
    assert isinstance(refused, str) and "left for it" in refused


def described(words: int, n_queries: int = 20) -> pl.DataFrame:
    """Titles with a description of so many words behind them."""
    more = " ".join(f"word{at % 7}" for at in range(words))
    return judged(n_queries, 6).with_columns(title=pl.col("title") + " " + more)


@pytest.mark.parametrize("name", ["bi_encoder", "cross_encoder"])
def test_texts_are_read_to_their_end(tmp_path: Path, name: str) -> None:
    tiny = str(write_tiny_bert(tmp_path / "tiny"))
    read_of = []
    for words in (0, 15, 2000):
        described(words).write_csv(tmp_path / "a.csv")
        pairs = Ground.of(read(tmp_path / "a.csv"), 0).pairs["train"]  # type: ignore[arg-type]
        read_of.append(relevance_encoders.tokens_to_read(name, pairs, tiny, 0))
    assert read_of[0] <= read_of[1] < read_of[2]
    assert (read_of[0], read_of[2]) == (relevance_encoders.SHORT, relevance_encoders.LONG)
    assert not any(each % 16 for each in read_of)


@pytest.mark.long
def test_long_texts_are_read_short_where_time_is_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clock that only fits move: a step takes as many seconds as texts have tokens."""
    described(2000, 60).write_csv(tmp_path / "a.csv")
    tiny = str(write_tiny_bert(tmp_path / "tiny"))
    ground = Ground.of(read(tmp_path / "a.csv"), 0, model=tiny)  # type: ignore[arg-type]
    measured: list[int] = []

    def pace(self: object, tokens: int) -> relevance_encoders.Pace:
        measured.append(tokens)
        return relevance_encoders.Pace(tokens, tokens / 100, 1e-5)

    monkeypatch.setattr(relevance_encoders._Fits, "pace", pace)
    for number, (seconds, tokens) in enumerate([(1000, 192), (30, 48)]):
        measured.clear()
        member = relevance_encoders.fit_encoder(
            "cross_encoder", ground, seconds, tmp_path / str(number)
        )
        assert not isinstance(member, str), member
        assert member.settings["max_tokens"] == tokens
        assert measured == ([48, 192] if tokens == 192 else [48])


def test_members_that_are_better_than_they_were_out_of_fold_count_for_more() -> None:
    """A member that saw half of train in each fold, and whose folds' mean answers."""
    rng = np.random.default_rng(0)
    tables, noise = {}, {}
    for split, queries in (("train", 400), ("validation", 160), ("test", 300)):
        query = np.repeat(np.arange(queries), 8)
        grade = rng.integers(0, 4, len(query)).astype(np.float64)
        tables[split] = pa.table(
            {
                "query": [f"{split} {number}" for number in query],
                "text": [f"text {at}" for at in range(len(query))],
                "grade": grade,
            }
        )
        noise[split] = rng.normal(size=(2, len(query)))
    pairs = {split: Pairs.of(table) for split, table in tables.items()}
    members = {"relevance_trees": Member({}, {}, 0.0), "cross_encoder": Member({}, {}, 0.0)}
    for split, each in pairs.items():
        spread = 3.0 if split == "train" else 0.7
        members["relevance_trees"].said[split] = np.float32(each.grade + 1.2 * noise[split][0])
        members["cross_encoder"].said[split] = np.float32(each.grade + spread * noise[split][1])
    ground = Ground(tables, pairs, 0)
    ensembles = join_members(ground, members, 0)
    found = figures_of(ground, members, ensembles)
    assert found["ensemble"]["by"] == "order_as_served"
    assert found["best_member"] == "cross_encoder"
    assert found["gain"]["low"] > 0
    judge = Judge(pairs["test"], 5, 0.0)
    by = {name: np.nanmean(judge.ndcg(said["test"])) for name, (said, _) in ensembles.items()}
    assert by["order_as_served"] > by["order"] + 0.01
    # what validation says of it was said by halves that did not see it
    whole = Judge(pairs["validation"], 5, 0.0).ndcg(ensembles["order_as_served"][0]["validation"])
    assert np.nanmean(whole) == pytest.approx(by["order_as_served"], abs=0.02)


@pytest.mark.parametrize(
    ("queries", "spread", "chosen"),
    [(12, 3.0, "weighted_grades"), (400, 3.0, "weighted_grades"), (400, 1.0, "order")],
    ids=["lucky", "hardly better", "better"],
)
def test_an_order_must_be_better_than_weighted_grades_by_more_than_chance(
    queries: int, spread: float, chosen: str
) -> None:
    rng = np.random.default_rng(5)
    query = np.repeat(np.arange(queries), 8)
    grade = rng.integers(0, 4, len(query)).astype(np.float64)
    table = pa.table({"query": query.astype(str), "text": query.astype(str), "grade": grade})
    held = Judge(Pairs.of(table), 5, 0.0)
    noise = rng.normal(size=(2, len(query)))
    said = {
        "weighted_grades": np.float32(grade + 3.0 * noise[0]),
        "order": np.float32(grade + spread * noise[1]),
    }
    told = {name: ({"validation": each}, {}) for name, each in said.items()}
    better = np.nanmean(held.ndcg(said["order"])) - np.nanmean(held.ndcg(said["weighted_grades"]))
    assert better > 0, "else it proves nothing"
    assert best_on_validation(told, held) == chosen
    alone = {"weighted_grades": told["weighted_grades"]}
    assert best_on_validation(alone, held) == "weighted_grades"


@pytest.mark.long
def test_the_order_of_a_files_rows_decides_nothing(tmp_path: Path) -> None:
    """Members that say the same of many rows are as good on a file that is sorted by grade."""
    frame = judged(40, 12).unique(["search", "title"], keep="first", maintain_order=True)
    orders = {
        "sorted": frame.sort("search", "stars", "title", descending=[False, True, False]),
        "shuffled": frame.sample(fraction=1.0, shuffle=True, seed=3),
    }
    found = []
    for name, rows in orders.items():
        rows.write_csv(tmp_path / f"{name}.csv")
        ground = Ground.of(read(tmp_path / f"{name}.csv"), 0)  # type: ignore[arg-type]
        members = {
            "relevance_trees": Member({}, {}, 0.0),
            "bi_encoder": Member({}, {}, 0.0),
        }
        for split, pairs in ground.pairs.items():
            members["bi_encoder"].said[split] = np.zeros(len(pairs), np.float32)
            words = [
                len(set(pairs.queries[query].split()) & set(pairs.items[item].split()[:1]))
                for query, item in zip(pairs.query, pairs.item, strict=True)
            ]
            members["relevance_trees"].said[split] = np.array(words, np.float32)
        found.append(figures_of(ground, members, join_members(ground, members, 0)))
    values = [
        [each["members"][name]["ndcg10"]["value"] for name in members]
        + [each["ensemble"]["ndcg10"]["value"]]
        for each in found
    ]
    assert values[0] == pytest.approx(values[1], abs=1e-4)
    constant = found[0]["members"]["bi_encoder"]["ndcg10"]["value"]
    assert constant < 0.9
    ensembles = [each["ensemble"] for each in found]
    assert ensembles[0]["by"] == ensembles[1]["by"]
    assert ensembles[0]["order"]["method"] == ensembles[1]["order"]["method"]
    weights = [each["order"]["weights"] for each in ensembles]
    assert weights[0] == pytest.approx(weights[1], abs=1e-2)


def test_files_and_words_are_told_in_the_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Labels in words, items in a file of their own, and splits that the file says."""

    def fitted(ground: Ground, budget: object) -> tuple[dict[str, Member], dict[str, str]]:
        rng = np.random.default_rng(0)
        said = {name: np.float32(rng.random(len(each))) for name, each in ground.pairs.items()}
        return {"relevance_trees": Member(said, {}, 0.0)}, {}

    monkeypatch.setattr(benchmark_relevance, "fit_members", fitted)
    frame = judged(40).with_row_index("sku")
    words = {0.0: "Meh", 1.0: "So so", 2.0: "Wow"}
    half = pl.when(pl.col("sku") < 160).then(pl.lit("train")).otherwise(pl.lit("test"))
    frame.select(
        "sku", "search", opinion=pl.col("stars").replace_strict(words), part=half
    ).write_csv(tmp_path / "judged.csv", separator=";")
    frame.select("sku", "title").write_csv(tmp_path / "items.csv")
    command = ["benchmark", "relevance", str(tmp_path / "judged.csv"), "-q"]
    command += ["--query-col", "search", "--label-col", "opinion", "--split-col", "part"]
    command += ["--join", str(tmp_path / "items.csv")]
    ran = CliRunner().invoke(app, command)
    assert ran.exit_code == 2
    assert "'So so'" in ran.output and "--grades" in ran.output
    out = tmp_path / "out.json"
    ran = CliRunner().invoke(
        app, [*command, "--grades", "Meh < So-so < Wow", "--on", "sku", "--out", str(out)]
    )
    assert ran.exit_code == 0, ran.output
    found = json.loads(out.read_text())
    assert found["grades"] == {"Meh": 0.0, "So so": 1.0, "Wow": 2.0}
    assert found["columns"] == {"query": "search", "text": ["title"], "label": "opinion"}
    assert found["guessed"] == ["text"]
    assert found["joined"] == [
        {"file": "items.csv", "on": ["sku"], "rows_without_partner": 0, "rows_of_a_key": 0}
    ]
    assert found["split"] == "part" and found["queries_in_two_splits"] == 0
    assert found["queries"] == {"train": 18, "validation": 2, "test": 20}


@pytest.mark.slow
def test_figures_of_a_file_within_its_budget(tmp_path: Path) -> None:
    """Below 20 s no machine fits a transformer; trees and their ensemble are there."""
    judged(120).write_csv(tmp_path / "a.csv")
    options = ["--query-col", "search", "--text-col", "title", "--label-col", "stars"]
    command = ["benchmark", "relevance", str(tmp_path / "a.csv"), *options, "--minutes", "0.3"]
    ran = CliRunner().invoke(app, [*command, "-q", "--out", str(tmp_path / "out.json")])
    assert ran.exit_code == 0, ran.output
    found = json.loads((tmp_path / "out.json").read_text())
    assert set(found["members"]) >= {"relevance_trees", "relevance_trees_ranking"}
    assert set(found["skipped"]) >= {"bi_encoder", "cross_encoder"}
    for member in found["members"].values():
        assert member["ndcg10"]["low"] <= member["ndcg10"]["value"] <= member["ndcg10"]["high"]
        assert member["ndcg10"]["value"] > 0.85 and member["rmse"]["value"] < 0.7
    assert found["best_member"] in found["members"]
    assert found["gain"]["low"] <= found["gain"]["value"] <= found["gain"]["high"]
    assert found["queries"] == {"train": 29, "validation": 3, "test": 8}
