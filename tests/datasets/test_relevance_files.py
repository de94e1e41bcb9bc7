"""Judged data sets as their publishers write them, in small: each is read with nothing said."""

from __future__ import annotations

import bz2
import gzip
import lzma
import zipfile
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pyarrow as pa
import pytest

from raysys.datasets.table_joins import Join
from raysys.datasets.tables import look
from raysys.errors import UserError
from raysys.stages.benchmark_pairs import Pool, divided, pool_of, read_pairs
from raysys.text.pairs import Pairs

QUERIES = 12
ITEMS = 4
WORDS = ("lamp", "rug", "desk", "sofa")


def rows(labels: tuple[object, ...]) -> pl.DataFrame:
    """Every query judged with every item, by labels in turn."""
    found = [
        {
            "query_id": 100 + query,
            "query": f"{WORDS[query % 4]} no {query}",
            "product_id": 7000 + item,
            "title": f'{WORDS[item]} 5" wide',
            "label": labels[(query + item) % len(labels)],
        }
        for query in range(QUERIES)
        for item in range(ITEMS)
    ]
    return pl.DataFrame(found)


def expected(pool: Pool, labels: tuple[object, ...], numbers: tuple[float, ...]) -> None:
    """The pool says what `rows` say."""
    of = dict(zip(labels, numbers, strict=True))
    table = rows(labels)
    want = table.select("query", text="title", grade=pl.col("label").replace_strict(of))
    got = pool.rows.select("query", "text", pl.col("grade").cast(pl.Float64).round(4))
    assert got.sort("query", "text").rows() == want.sort("query", "text").rows()


def bare(path: Path, frame: pl.DataFrame, separator: str = "\t") -> Path:
    """Fields as they stand, without a header and without quotes."""
    lines = [separator.join(map(str, row)) for row in frame.rows()]
    path.write_text("\n".join(lines) + "\n")
    return path


ESCI = ("Exact", "Substitute", "Complement", "Irrelevant")
WANDS = ("Irrelevant", "Partial", "Exact")


@pytest.mark.parametrize("labels", [ESCI, ("E", "S", "C", "I")])
def test_esci(tmp_path: Path, labels: tuple[str, ...]) -> None:
    """Parquet; products in another file, keyed by id and locale, far more than are judged."""
    table = rows(labels)
    examples = table.select(
        pl.int_range(pl.len()).alias("example_id"),
        "query",
        "query_id",
        pl.format("B{}", "product_id").alias("product_id"),
        pl.lit("us").alias("product_locale"),
        esci_label="label",
        split=pl.when(pl.col("query_id") % 3 == 0).then(pl.lit("test")).otherwise(pl.lit("train")),
    )
    examples.write_parquet(tmp_path / "examples.parquet")
    item = table.unique("product_id").sort("product_id")
    products = [
        item.select(
            pl.format("B{}", "product_id").alias("product_id"),
            product_title=pl.col("title") if locale == "us" else pl.lit("falsch"),
            product_description=pl.lit(None, pl.String),
            product_locale=pl.lit(locale),
        )
        for locale in ("de", "us")
    ]
    pl.concat(products).write_parquet(tmp_path / "products.parquet", row_group_size=3)
    path, joins = tmp_path / "examples.parquet", [tmp_path / "products.parquet"]
    pool = pool_of(path, joins=joins)
    expected(pool, labels, (1.0, 0.1, 0.01, 0.0))
    assert pool.told["grades"] == dict(zip(labels, (1.0, 0.1, 0.01, 0.0), strict=True))
    assert "ESCI" in pool.told["scale"]
    assert pool.told["joined"] == [
        {
            "file": "products.parquet",
            "on": ["product_id", "product_locale"],
            "rows_without_partner": 0,
            "rows_of_a_key": 0,
        }
    ]
    assert pool.told["guessed"] == ["query", "text", "label"]
    judged = read_pairs(path, None, (), None, joins=joins, split_col="split")
    test = set(judged.split("test")["query"].to_pylist())
    assert test == set(examples.filter(pl.col("split") == "test")["query"])
    assert judged.split("validation").num_rows == ITEMS
    assert judged.told["queries_in_two_splits"] == 0


@pytest.mark.parametrize("ids", [True, False])
def test_queries_of_several_locales_are_several(tmp_path: Path, ids: bool) -> None:
    """The words may stand in train of one and in test of the other; ids tell nothing apart."""
    table = rows((0, 1)).drop("product_id")
    again = table.with_columns(pl.col("query_id") + 50, label=1 - pl.col("label"))
    parts = [
        table.with_columns(product_locale=pl.lit("us"), split=pl.lit("train")),
        again.with_columns(product_locale=pl.lit("US"), split=pl.lit("train")),
        again.filter(pl.col("query_id") < 156).with_columns(
            pl.col("query_id") + 50, product_locale=pl.lit("es"), split=pl.lit("test")
        ),
    ]
    path = tmp_path / "a.csv"
    pl.concat(parts).drop([] if ids else ["query_id"]).write_csv(path)
    pool = pool_of(path, split_col="split")
    assert pool.told["columns"]["locale"] == "product_locale"
    assert pool.rows.height == (QUERIES + QUERIES // 2) * ITEMS
    assert pool.merged == QUERIES * ITEMS  # the same words of two ids are one query
    judged = divided(pool)
    assert judged.told["queries_in_two_splits"] == 0
    assert set(judged.split("test")["locale"].to_pylist()) == {"es"}
    drawn = divided(pool_of(path)).table
    assert len(set(zip(drawn["query"].to_pylist(), drawn["locale"].to_pylist(), strict=True))) == 18
    pairs = Pairs.of(drawn)
    assert len(pairs.lists()) == len(pairs.queries) == 18
    assert {len(each) for each in pairs.lists()} == {ITEMS}


@pytest.mark.parametrize("ids", [True, False])
def test_a_country_of_the_items_tells_no_queries_apart(tmp_path: Path, ids: bool) -> None:
    table = rows((0, 1)).with_columns(country=pl.format("land {}", pl.col("product_id") % 2))
    table.drop([] if ids else ["query_id"]).write_csv(tmp_path / "a.csv")
    pool = pool_of(tmp_path / "a.csv")
    assert "locale" not in pool.told["columns"]
    assert "locale" not in divided(pool).table.column_names


def test_wands(tmp_path: Path) -> None:
    """Tabs in files named .csv; queries and products in files of their own."""
    table = rows(WANDS)
    table.select(pl.int_range(pl.len()).alias("id"), "query_id", "product_id", "label").write_csv(
        tmp_path / "label.csv", separator="\t"
    )
    table.select("query_id", "query", query_class=pl.lit("Lamps, and more")).unique(
        maintain_order=True
    ).write_csv(tmp_path / "query.csv", separator="\t")
    table.select(
        "product_id",
        product_name="title",
        product_class=pl.lit(None, pl.String),
        product_description=pl.lit("of wood, stone; or <b>glass</b>"),
    ).unique(maintain_order=True).write_csv(tmp_path / "product.csv", separator="\t")
    joins = [tmp_path / "query.csv", tmp_path / "product.csv"]
    pool = pool_of(tmp_path / "label.csv", joins=joins)
    expected(pool, WANDS, (0.0, 1.0, 2.0))
    told = pool_of(tmp_path / "label.csv", None, ["product_description"], joins=joins)
    assert set(told.rows["text"]) == {"of wood, stone; or glass"}


def test_crowdflower(tmp_path: Path) -> None:
    labels = (1, 2, 3, 4)
    rows(labels).select(
        pl.int_range(pl.len()).alias("id"),
        "query",
        product_title="title",
        product_description=pl.lit(
            "<style>.a{}</style><ul><li>Two&nbsp;bulbs</li><li>4 &lt; 5</li></ul>a<br/>b"
        ),
        median_relevance="label",
        relevance_variance=pl.lit(0.5),
    ).write_csv(tmp_path / "train.csv")
    pool = pool_of(tmp_path / "train.csv")
    expected(pool, labels, labels)
    assert (pool.told["scale"], pool.told["grades"]) == ("numbers", {})
    told = pool_of(tmp_path / "train.csv", None, ["product_description"], None)
    assert set(told.rows["text"]) == {"Two bulbs 4 < 5 a b"}


def test_home_depot(tmp_path: Path) -> None:
    """latin-1; descriptions in another file; attributes have several rows a product."""
    labels = (1.0, 2.33, 3.0)
    table = rows(labels)
    train = table.select(
        pl.int_range(pl.len()).alias("id"),
        product_uid="product_id",
        product_title=pl.format("{} é", "title"),
        search_term="query",
        relevance="label",
    )
    (tmp_path / "train.csv").write_bytes(train.write_csv().encode("latin-1"))
    item = table.unique("product_id", maintain_order=True)
    described = item.select(product_uid="product_id", product_description=pl.lit("½ in. wide"))
    (tmp_path / "product_descriptions.csv").write_bytes(described.write_csv().encode("latin-1"))
    names = [("Material", "Oak"), ("Bullet01", "Oak"), ("Colour", "Red")]
    attributes = [
        {"product_uid": float(number), "name": name, "value": value}
        for number in [*item["product_id"], 1]
        for name, value in names
    ]
    pl.DataFrame(attributes).write_csv(tmp_path / "attributes.csv")
    joins = [tmp_path / "product_descriptions.csv", tmp_path / "attributes.csv"]
    pool = pool_of(tmp_path / "train.csv", joins=joins)
    assert pool.told["columns"] == {
        "query": "search_term",
        "text": ["product_title"],
        "label": "relevance",
    }
    assert pool.rows["text"][0] == 'lamp 5" wide é'
    texts = ["product_title", "product_description", "value"]
    more = pool_of(tmp_path / "train.csv", None, texts, joins=joins)
    assert more.rows["text"][0] == 'lamp 5" wide é. ½ in. wide. Oak. Red'
    assert [each["rows_of_a_key"] for each in more.told["joined"]] == [0, 8]


@pytest.mark.parametrize("iteration", ["0", "Q0", None])
def test_trec(tmp_path: Path, iteration: str | None) -> None:
    """Qrels without a header; queries and documents too, with quotes that quote nothing."""
    labels = (0, 1, 2, 3)
    table = rows(labels)
    columns = ["query_id", *([pl.lit(iteration)] if iteration else []), "product_id", "label"]
    qrels = bare(tmp_path / "qrels.dl19-passage.txt", table.select(columns), " ")
    queries = bare(tmp_path / "queries.tsv", table.select("query_id", "query").unique())
    item = table.select("product_id", pl.format('"{}', "title")).unique()
    item = pl.concat([item, pl.DataFrame({"product_id": [1], "literal": ["nobody asks"]}).rename(
        {"literal": item.columns[1]})])  # fmt: skip
    documents = bare(tmp_path / "collection.tsv", item)
    pool = pool_of(qrels, joins=[queries, documents])
    assert pool.rows.height == QUERIES * ITEMS
    assert set(pool.rows["text"]) == {f'"{word} 5" wide' for word in WORDS}
    assert pool.told["columns"] == {"query": "query", "text": ["text"], "label": "grade"}
    assert set(pool.rows["grade"]) == {0.0, 1.0, 2.0, 3.0}


def test_beir(tmp_path: Path) -> None:
    """Both further files call their key `_id` and their text `text`: names tell them apart."""
    labels = (0, 1, 2)
    table = rows(labels)
    (tmp_path / "qrels").mkdir()
    qrels = tmp_path / "qrels" / "test.tsv"
    table.select(
        pl.col("query_id").alias("query-id"), pl.col("product_id").alias("corpus-id"), score="label"
    ).write_csv(qrels, separator="\t")
    keyed = pl.col("query_id").cast(pl.String).alias("_id")
    queries = table.select(keyed, text="query", metadata=pl.struct("query")).unique(
        "_id", maintain_order=True
    )
    queries.write_ndjson(tmp_path / "queries.jsonl")
    corpus = table.select(
        pl.col("product_id").cast(pl.String).alias("_id"), title=pl.lit(""), text="title"
    )
    corpus.unique("_id", maintain_order=True).write_ndjson(tmp_path / "corpus.jsonl")
    joins = [tmp_path / "corpus.jsonl", tmp_path / "queries.jsonl"]
    for order in (joins, joins[::-1]):
        expected(pool_of(qrels, joins=order), labels, (0.0, 1.0, 2.0))


def test_ms_marco(tmp_path: Path) -> None:
    labels = (0, 1)
    table = rows(labels).select(
        qid="query_id", pid="product_id", query="query", passage="title", label="label"
    )
    table.write_csv(tmp_path / "pairs.tsv", separator="\t")
    expected(pool_of(tmp_path / "pairs.tsv"), labels, (0.0, 1.0))
    qrels = bare(
        tmp_path / "qrels.tsv",
        table.select("qid", pl.lit(0).alias("iteration"), "pid", "label"),
    )
    top = bare(tmp_path / "top1000.dev", table.select("qid", "pid", "query", "passage"))
    expected(pool_of(qrels, joins=[top]), labels, (0.0, 1.0))


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.txt", "pairs"])
def test_delimiters_are_told_by_the_content(tmp_path: Path, separator: str, name: str) -> None:
    labels = ("low", "medium", "high")
    table = rows(labels).with_columns(title=pl.format("{}, with; all | of\tthem", "title"))
    table.write_csv(tmp_path / name, separator=separator, quote_style="non_numeric")
    pool = pool_of(tmp_path / name)
    assert pool.rows.height == QUERIES * ITEMS
    assert set(pool.rows["text"]) == {f'{word} 5" wide, with; all | of them' for word in WORDS}


@pytest.mark.parametrize(
    "title", ['5" lamp', '"big" lamp', '"big lamp', 'a "big" 5" lamp', '"5"" lamp"']
)
@pytest.mark.parametrize("separator", [",", ";"])
def test_marks_that_quote_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, separator: str, title: str
) -> None:
    """No row is lost by them, whole or in blocks."""
    monkeypatch.setattr("raysys.datasets.chunks.CHUNK", 300)
    table = rows(("bad", "good"))
    lines = [["", "query", "product_id", "title", "label"]]
    for number, row in enumerate(table.rows()):
        at = title if row[2] == 7001 and number < 11 else f"{WORDS[row[2] % 4]}"
        lines.append([str(number), row[1], str(row[2]), at, row[4]])
    text = "\n".join(separator.join(line) for line in lines) + "\n"
    (tmp_path / "a.csv").write_text(text)
    whole = pool_of(tmp_path / "a.csv")
    assert whole.rows.height == table.height
    assert any("big" in text or "5" in text for text in whole.rows["text"])
    table.select("product_id", "label", "query").write_csv(tmp_path / "judged.csv")
    joined = pool_of(tmp_path / "judged.csv", joins=[tmp_path / "a.csv"], on=["product_id"])
    assert joined.rows.height == table.height


def zipped(data: bytes) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("train.csv", data)
            archive.writestr("__MACOSX/._train.csv", b"x")

    return write


def test_packed_files(tmp_path: Path) -> None:
    labels = ("yes", "no")
    data = rows(labels).write_csv().encode()
    packed = {
        "a.csv.gz": gzip.compress(data),
        "a.csv.bz2": bz2.compress(data),
        "a.csv.xz": lzma.compress(data),
        "a.csv.zst": pa.compress(data, "zstd", asbytes=True),
        "lying.csv": gzip.compress(data),
    }
    for name, content in packed.items():
        (tmp_path / name).write_bytes(content)
    for name in ("a.csv.zip", "a.zip"):
        zipped(data)(tmp_path / name)
    frame = rows(labels)
    frame.write_parquet(tmp_path / "b.parquet")
    (tmp_path / "b.parquet.gz").write_bytes(gzip.compress((tmp_path / "b.parquet").read_bytes()))
    (tmp_path / "records.json").write_text(frame.write_json())
    found = sorted(tmp_path.iterdir())
    assert len(found) == 10
    for path in found:
        expected(pool_of(path), labels, (1.0, 0.0))
    frame.drop("title").write_csv(tmp_path / "judged.csv")
    for path in found:
        pool = pool_of(tmp_path / "judged.csv", joins=[path], on=["query_id", "product_id"])
        expected(pool, labels, (1.0, 0.0))


@pytest.mark.parametrize(
    ("encoding", "title"),
    [
        ("utf-8", "größe é"),
        ("cp1252", "größe é"),
        ("cp1252", "crème brulée"),
        ("utf-16", "größe"),
        ("utf-16-le", "größe"),
        ("gb18030", "红色的台灯和地毯"),
        ("big5", "紅色的檯燈和地毯"),
        ("cp932", "あかいランプとつくえ"),
        ("euc-kr", "빨간 램프와 책상은 이 집의 것"),
    ],
)
def test_a_file_is_of_one_encoding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoding: str, title: str
) -> None:
    """Though a byte is broken, and whole blocks are ASCII; whole or in blocks."""
    monkeypatch.setattr("raysys.datasets.chunks.CHUNK", 300)
    table = rows(("bad", "good")).with_columns(
        pl.when(pl.col("query_id") > 105).then(pl.lit(title)).otherwise("title").alias("title")
    )
    table = table.with_columns(title=pl.concat_str("title", pl.lit(" "), "product_id"))
    data = table.write_csv().encode(encoding)
    if encoding == "utf-8":
        at = data.index(b"wide")
        data = data[:at] + b"\xfc" + data[at + 1 :]
    (tmp_path / "a.csv").write_bytes(data)
    table.select("query_id", "product_id", "label").write_csv(tmp_path / "judged.csv")
    joined = pool_of(
        tmp_path / "judged.csv", joins=[tmp_path / "a.csv"], on=["query_id", "product_id"]
    )
    for pool in (pool_of(tmp_path / "a.csv"), joined):
        texts = pool.rows["text"]
        assert texts.str.starts_with(title).sum() == 6 * ITEMS
        assert texts.str.contains("\ufffd").sum() == (encoding == "utf-8")


@pytest.mark.parametrize("many", [True, False])
@pytest.mark.parametrize("blocks", [True, False])
def test_fields_too_many_are_told(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    many: bool,
    blocks: bool,
) -> None:
    """Commas that nothing quotes: the rest of such a text was lost without a word."""
    monkeypatch.setattr("raysys.datasets.chunks.CHUNK", 100)
    table = pl.concat([rows(("bad", "good"))] * (1 if many else 3)).with_row_index("number")
    lines = [f"{n},{q},{p},{label},lamp {n}" for n, q, _, p, _, label in table.rows()]
    lines[7] += ", of wood"
    lines[8] += ",,"  # says nothing
    text = "number,query_id,product_id,label,title\n" + "\n".join(lines) + "\n"
    (tmp_path / "a.csv").write_text(text)
    table.select("number", "query_id", "query").write_csv(tmp_path / "queries.csv")
    paths = [tmp_path / "queries.csv", tmp_path / "a.csv"]
    if not blocks:
        paths.reverse()
    join = Join.of(look(paths[0]), [look(paths[1])], ["number"])
    message = f"1 of {table.height} rows have more than the 5 fields of the others, the first in"
    message += " line 9: 7"
    if many:
        with pytest.raises(UserError, match=rf"(?s)a.csv.*{message}.*\| of wood.*quotation marks"):
            join.read(["query", "title", "label"])
    else:
        frame, _ = join.read(["query", "title", "label"])
        assert frame.height == table.height
        assert message in caplog.text


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_line_for_excel_is_no_header(tmp_path: Path, encoding: str) -> None:
    labels = ("bad", "good")
    text = rows(labels).write_csv(separator=";")
    (tmp_path / "a.csv").write_bytes(f"sep=;\r\n{text}".encode(encoding))
    expected(pool_of(tmp_path / "a.csv"), labels, (0.0, 1.0))
    rows(labels).select("query_id", "product_id", "label").write_csv(tmp_path / "judged.csv")
    keys = ["query_id", "product_id"]
    pool = pool_of(tmp_path / "judged.csv", joins=[tmp_path / "a.csv"], on=keys)
    expected(pool, labels, (0.0, 1.0))


def test_archives_that_cannot_be_meant_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("train.csv", "x")
        archive.writestr("test.csv", "x")
    with pytest.raises(UserError, match=r"2 files \(train.csv, test.csv\)"):
        pool_of(tmp_path / "a.zip")
    with zipfile.ZipFile(tmp_path / "a.csv", "w") as archive:
        archive.writestr("[Content_Types].xml", "x")
        archive.writestr("xl/workbook.xml", "x")
    with pytest.raises(UserError, match="Excel"):
        pool_of(tmp_path / "a.csv")


def test_a_joined_file_is_read_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Records of several lines, over the ends of chunks; rows without partner are counted."""
    monkeypatch.setattr("raysys.datasets.chunks.CHUNK", 256)
    labels = ("bad", "good")
    table = rows(labels)
    table.drop("title").write_csv(tmp_path / "judged.csv")
    items = pl.DataFrame({"product_id": range(6000, 7003)}).with_columns(
        title=pl.concat_str(
            pl.format('{} 5"\n', pl.lit("first")), pl.col("product_id").cast(pl.String)
        ),
        ballast=pl.lit("x" * 50),
    )
    items.write_csv(tmp_path / "items.csv")
    pool = pool_of(tmp_path / "judged.csv", joins=[tmp_path / "items.csv"])
    assert set(pool.rows["text"]) == {f'first 5" {number}' for number in (7000, 7001, 7002)}
    assert pool.told["joined"][0]["rows_without_partner"] == QUERIES


def test_lists_of_a_joined_file_are_joined(tmp_path: Path) -> None:
    table = rows(("bad", "good")).filter(pl.col("product_id") < 7002)
    table.drop("title").write_csv(tmp_path / "judged.csv")
    lines = [
        '{"product_id": 7000, "points": ["soft", "red"], "nested": {"a": [1]}}',
        '{"points": ["blue"], "product_id": "7001", "title": null}',
    ]
    (tmp_path / "items.jsonl").write_text("\n".join(lines) + "\n")
    pool = pool_of(tmp_path / "judged.csv", None, ["points"], joins=[tmp_path / "items.jsonl"])
    assert set(pool.rows["text"]) == {"soft. red", "blue"}
    (tmp_path / "items.jsonl").write_text('{"product_id": 7000, "points": "x"}\n{"product_id"\n')
    with pytest.raises(UserError, match="cannot be read as jsonl"):
        pool_of(tmp_path / "judged.csv", None, ["points"], joins=[tmp_path / "items.jsonl"])


def judged(tmp_path: Path) -> Path:
    rows(("bad", "good")).write_csv(tmp_path / "judged.csv")
    return tmp_path / "judged.csv"


def test_names_of_keys_may_be_told(tmp_path: Path) -> None:
    table = rows(("bad", "good"))
    table.drop("title").write_csv(tmp_path / "judged.csv")
    table.select(number="product_id", title="title").unique().write_csv(tmp_path / "stock.csv")
    files = {"joins": [tmp_path / "stock.csv"]}
    with pytest.raises(UserError, match=r"(?s)no column in common with judged.csv.*--on.*number"):
        pool_of(tmp_path / "judged.csv", **files)  # type: ignore[arg-type]
    pool = pool_of(tmp_path / "judged.csv", on=["product_id=number"], **files)  # type: ignore[arg-type]
    expected(pool, ("bad", "good"), (0.0, 1.0))
    for on, message in (
        ("product_id=nummer", "no file that is joined has a column 'nummer'"),
        ("produkt_id=number", "(?s)no column 'produkt_id'.*'product_id'"),
        ("query_id=number", "no row has a partner by query_id=number: '1[01].' is asked .*'700.'"),
    ):
        with pytest.raises(UserError, match=message):
            pool_of(tmp_path / "judged.csv", "query", ["title"], on=[on], **files)  # type: ignore[arg-type]


def test_joins_that_may_be_chance_are_refused(tmp_path: Path) -> None:
    """`id` is a row's number in one file, and the product's in the other."""
    table = rows(("bad", "good"))
    table.drop("title", "product_id").with_row_index("id").write_csv(tmp_path / "judged.csv")
    table.select(id="product_id", title="title").unique().write_csv(tmp_path / "stock.csv")
    with pytest.raises(UserError, match=r"not clear by which column it is joined.*'id'"):
        pool_of(tmp_path / "judged.csv", joins=[tmp_path / "stock.csv"])


def test_a_grade_in_a_joined_file_is_refused(tmp_path: Path) -> None:
    table = rows(("bad", "good"))
    table.select("query_id", "query").unique().write_csv(tmp_path / "query.csv")
    table.drop("query").write_csv(tmp_path / "label.csv")
    with pytest.raises(UserError, match="give the file of the grades first"):
        pool_of(tmp_path / "query.csv", label_col="label", joins=[tmp_path / "label.csv"])


def test_columns_that_are_not_there_are_named(tmp_path: Path) -> None:
    path = judged(tmp_path)
    with pytest.raises(UserError, match=r"(?s)no column 'Titel'.*mean 'title'.*query_id, query"):
        pool_of(path, None, ["Titel"])
    rows(("bad", "good")).drop("label").write_csv(path)
    with pytest.raises(UserError, match=r"(?s)known for the grade.*--label-col.*title"):
        pool_of(path)
    rows(("bad", "good")).with_columns(search_term="query").write_csv(path)
    with pytest.raises(UserError, match="not clear which column is the query: 'query', 'search_t"):
        pool_of(path)
    table = rows((1, 2)).select("query", "title", "label")
    bare(path, table, ",")
    with pytest.raises(UserError, match="first line looks like data"):
        pool_of(path, "query", ["title"], "label")


def test_features_without_texts_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("2 qid:10 1:0.03 2:0.5 #docid = G1\n0 qid:10 1:0.3 2:0.1\n")
    with pytest.raises(UserError, match="without texts"):
        pool_of(tmp_path / "a.txt")


def test_words_of_a_users_own(tmp_path: Path) -> None:
    labels = ("meh", "fine", "wow")
    rows(labels).write_csv(tmp_path / "a.csv")
    with pytest.raises(UserError, match=r"(?s)'meh' 16.*--grades"):
        pool_of(tmp_path / "a.csv")
    pool = pool_of(tmp_path / "a.csv", grades=["Meh < Fine < Wow"])
    expected(pool, labels, (0.0, 1.0, 2.0))
    assert pool.told["grades"] == {"meh": 0.0, "fine": 1.0, "wow": 2.0}


@pytest.mark.parametrize("word", ["NA", "None", "-", "", "\\N", "nan"])
@pytest.mark.parametrize("labels", [("Exact", "Irrelevant"), (2, 0)])
def test_labels_that_say_nothing_are_left_out(
    tmp_path: Path, word: str, labels: tuple[object, ...]
) -> None:
    table = rows(labels).with_columns(pl.col("label").cast(pl.String))
    one = table.head(1).with_columns(query=pl.lit("lamp"), label=pl.lit(word))
    pl.concat([table, one]).write_csv(tmp_path / "a.csv")
    pool = pool_of(tmp_path / "a.csv")
    assert (pool.rows.height, pool.dropped) == (QUERIES * ITEMS, 1)
    if labels[0] == "Exact":
        pool = pool_of(tmp_path / "a.csv", grades=["Irrelevant < Exact"])
        assert (pool.rows.height, pool.dropped) == (QUERIES * ITEMS, 1)


def test_none_may_be_a_grade(tmp_path: Path) -> None:
    labels = ("None", "Low", "High")
    rows(labels).write_csv(tmp_path / "a.csv")
    expected(pool_of(tmp_path / "a.csv"), labels, (0.0, 1.0, 3.0))
    pool = pool_of(tmp_path / "a.csv", grades=["none < low < high"])
    expected(pool, labels, (0.0, 1.0, 2.0))


def test_a_test_file_is_the_test(tmp_path: Path) -> None:
    table = rows((0, 1, 2)).rename({"title": "product_title"})
    other = table.with_columns(pl.col("query_id") + 500, query=pl.format("new {}", "query"))
    again = pl.concat([other, table.head(2 * ITEMS)])
    table.write_csv(tmp_path / "train.csv")
    again.write_csv(tmp_path / "test.tsv", separator="\t")
    judged = read_pairs(tmp_path / "train.csv", None, (), None, test=tmp_path / "test.tsv")
    test = set(judged.split("test")["query"].to_pylist())
    assert test == set(again["query"])
    assert judged.told["queries_in_two_splits"] == 2
    assert judged.split("validation").num_rows == ITEMS
    some = read_pairs(
        tmp_path / "train.csv", None, (), None, test=tmp_path / "test.tsv", queries=12
    )
    sizes = {name: some.split(name).num_rows // ITEMS for name in ("train", "validation", "test")}
    assert sizes == {"train": 5, "validation": 1, "test": 7}
    again.drop("product_title").write_csv(tmp_path / "test.csv")
    with pytest.raises(UserError, match="no column 'product_title'"):
        pool_of(tmp_path / "train.csv", test=tmp_path / "test.csv")
    with pytest.raises(UserError, match="not both"):
        pool_of(tmp_path / "train.csv", test=tmp_path / "test.csv", split_col="query")


@pytest.mark.parametrize(
    ("words", "message"),
    [(("train", "holdout"), "'holdout' 24"), (("train", "dev"), "no pair is in test")],
)
def test_splits_that_are_not_known_are_refused(
    tmp_path: Path, words: tuple[str, str], message: str
) -> None:
    split = pl.when(pl.col("query_id") % 2 == 0).then(pl.lit(words[0])).otherwise(pl.lit(words[1]))
    rows((0, 1)).with_columns(split=split).write_csv(tmp_path / "a.csv")
    with pytest.raises(UserError, match=message):
        read_pairs(tmp_path / "a.csv", None, (), None, split_col="split")


def test_pairs_of_which_nothing_can_be_judged_are_refused(tmp_path: Path) -> None:
    rows((1,)).write_csv(tmp_path / "same.csv")
    with pytest.raises(UserError, match="every label is 1"):
        pool_of(tmp_path / "same.csv")
    rows((0, 1)).unique("query_id", maintain_order=True).write_csv(tmp_path / "single.csv")
    with pytest.raises(UserError, match="each of 12 queries has one product"):
        divided(pool_of(tmp_path / "single.csv"))
    table = rows((0, 1))
    best = pl.when(pl.col("query_id") == 100).then("label").otherwise(0)
    rare = table.with_columns(label=best, split=pl.when(pl.col("query_id") < 106).then(
        pl.lit("train")).otherwise(pl.lit("test")))  # fmt: skip
    rare.write_csv(tmp_path / "rare.csv")
    with pytest.raises(UserError, match="none of 6 test queries"):
        divided(pool_of(tmp_path / "rare.csv", split_col="split"))
