"""Thesauri, words replaced, and synonyms that a log tells of."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from raysys.errors import UserError
from raysys.text.augment.draws import keys_of
from raysys.text.augment.learned import SynonymLearning, clicked_queries, learn_synonyms
from raysys.text.augment.settings import SynonymReplacement
from raysys.text.augment.synonyms import Thesaurus, synonym_replacement, wordnet
from raysys.text.augment.words import Words

SHARED = Path(__file__).parents[4] / "shared" / "data"


def replaced(text: str, settings: SynonymReplacement, n: int = 60) -> set[str]:
    words = Words.of(pl.Series([text] * n))
    keys = keys_of(np.arange(n), 0, "test")
    return set(synonym_replacement(words, keys, settings).texts())


def test_wordnet_knows_usual_senses_first() -> None:
    found = wordnet()
    assert len(found) > 50_000
    assert found.of("sofa")[0][0] == "couch"
    assert [word for word, _ in found.of("Refrigerator")] == ["icebox"]
    assert "inexpensive" == found.of("cheap")[0][0]  # noqa: SIM300
    assert "lounge" in dict(found.of("couch")) and dict(found.of("couch"))["lounge"] < 0.4
    assert found.of("sofas")[0][0] == "couches"  # a regular plural
    assert not found.of("mens") and not found.of("xyzzyq")
    score = found.frame["score"]
    assert score.min() > 0 and score.max() <= 1  # type: ignore[operator]


def test_the_score_is_the_overlap_of_senses(tmp_path: Path) -> None:
    """Bhattacharyya's coefficient by hand: `bank` is met 3 + 1 and 0 + 1 times in its senses."""
    (tmp_path / "index.sense").write_text(
        "bank%1:14:00:: 00000001 1 3\nbank%1:17:00:: 00000002 2 0\n"
        "depository%1:14:00:: 00000001 1 0\nshore%1:17:00:: 00000002 1 1\n"
        "two_words%1:17:00:: 00000002 1 1\n"
    )
    (tmp_path / "noun.exc").write_text("men man\n")
    found = Thesaurus.open(str(tmp_path))
    assert found.of("bank") == [
        ("depository", pytest.approx(np.sqrt(4 / 5 * 1))),
        ("shore", pytest.approx(np.sqrt(1 / 5 * 1))),
    ]
    assert found.of("banks")[0][0] == "depositories"


def test_words_are_replaced_in_their_case_and_punctuation(tmp_path: Path) -> None:
    path = tmp_path / "shop.txt"
    path.write_text("# our words\nsofa, couch, divan\ntelly => tv  # one way\n\n", encoding="utf-8")
    settings = SynonymReplacement(thesaurus=str(path), strength=1)
    assert replaced("(Sofa), red", settings) == {"(Couch), red", "(Divan), red"}
    assert replaced("SOFA", settings) == {"COUCH", "DIVAN"}
    assert replaced("telly", settings) == {"tv"} and replaced("tv", settings) == {"tv"}
    assert replaced("sofa1 sofas", settings) == {"sofa1 sofas"}
    near = SynonymReplacement(thesaurus=str(path), strength=1, most=1)
    assert replaced("sofa", near) == {"couch"}
    both = SynonymReplacement(thesaurus=("wordnet", str(path)), strength=1, least_score=0.9)
    assert replaced("sofa refrigerator", both) == {"couch icebox", "divan icebox"}


def test_a_share_of_the_words_that_have_synonyms(tmp_path: Path) -> None:
    path = tmp_path / "own.txt"
    path.write_text("sofa, couch\nrug, carpet\nlamp, light\n")
    words = {"couch", "carpet", "light"}
    for text in replaced("the sofa the rug the lamp", SynonymReplacement(thesaurus=str(path))):
        assert len(words & set(text.split())) == 1
    for text in replaced("sofa rug lamp", SynonymReplacement(thesaurus=str(path), strength=0.67)):
        assert len(words & set(text.split())) == 2


def test_a_thesaurus_comes_back(tmp_path: Path) -> None:
    ours = Thesaurus.from_groups([["Sofa", "couch "], ["rug", "carpet", ""]])
    ours.save(tmp_path / "own.parquet")
    assert Thesaurus.open(str(tmp_path / "own.parquet")).frame.equals(ours.frame)


@pytest.mark.parametrize("content", [b"sofa, \xff", None])
def test_files_that_are_none(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "own.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match="not UTF-8" if content else "no thesaurus"):
        Thesaurus.open(str(path))
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match="not a thesaurus"):
        Thesaurus.open(str(tmp_path / "broken.parquet"))


# learned


def event(kind: str, minute: int, session: str, item: str | None = None, query: str | None = None
          ) -> dict[str, object]:  # fmt: skip
    return {
        "event_type": kind, "timestamp": minute * 60_000, "session_id": session, "item_id": item,
        "query": query,
    }  # fmt: skip


def events(*rows: dict[str, object]) -> pl.DataFrame:
    schema = {"event_type": pl.String, "timestamp": pl.Int64, "session_id": pl.String,
              "item_id": pl.String, "query": pl.String}  # fmt: skip
    return pl.DataFrame(list(rows), schema=schema)


def test_clicks_belong_to_the_last_search_and_in_part_to_what_it_rephrased() -> None:
    log = events(
        event("search", 0, "s", query="Couch "),
        event("search", 1, "s", query="sofa"),
        event("search", 2, "s", query="sofa"),  # the next page of the same
        event("click", 3, "s", "i1"),
        event("search", 4, "s", query="lamp"),  # after the click: has no part in it
        event("click", 5, "s", "i4"),  # and what it leads to is none of the earlier queries'
        event("click", 5, "t", "i2", query="rug"),
        event("view", 6, "t", "i9", query="rug"),
        event("click", 7, "u", "i3"),  # nobody searched
    )
    found = clicked_queries(log)
    assert found.rows() == [
        ("couch", "i1", 0.5), ("lamp", "i4", 1.0), ("rug", "i2", 1.0), ("sofa", "i1", 1.0),
    ]  # fmt: skip
    assert clicked_queries(log, rephrasings=0)["query"].to_list() == ["lamp", "rug", "sofa"]
    named = events(
        event("search", 0, "s", query="couch"),
        event("search", 1, "s", query="sofa"),
        event("click", 2, "s", "i1", query="sofa"),
    )
    assert clicked_queries(named).rows() == [("couch", "i1", 0.5), ("sofa", "i1", 1.0)]


def shop() -> tuple[pl.DataFrame, pl.DataFrame]:
    """Titles say sofa and carpet; half of the people ask for couch and rug; colours go beside."""
    rng = np.random.default_rng(0)
    colours = ("red", "blue", "green", "grey")
    titles, clicks = [], []
    for number in range(80):
        kind = ("sofa", "carpet", "lamp", "desk")[number % 4]
        colour = colours[number // 4 % 4]
        titles.append((f"i{number}", f"{colour} {kind} for the home"))
        asked = {"sofa": ("sofa", "couch"), "carpet": ("carpet", "rug")}.get(kind, (kind,))
        for _ in range(6):
            word = str(rng.choice(asked))
            query = f"{colour} {word}" if rng.random() < 0.5 else word
            clicks.append((query, f"i{number}", 1.0))
    frame = pl.DataFrame(clicks, schema=["query", "item_id", "weight"], orient="row")
    frame = frame.group_by("query", "item_id").agg(pl.col("weight").sum()).sort("query", "item_id")
    return frame, pl.DataFrame(titles, schema=["item_id", "title"], orient="row")


FEW_KINDS = SynonymLearning(largest_share=0.5)  # a sofa is a quarter of this shop


def test_words_that_lead_to_the_same_items_are_synonyms() -> None:
    clicks, titles = shop()
    found = learn_synonyms(clicks, titles, FEW_KINDS)
    assert found.of("couch")[0][0] == "sofa" and found.of("sofa")[0][0] == "couch"
    assert found.of("rug")[0][0] == "carpet"
    assert not {"red", "blue", "green", "grey"} & {word for word, _ in found.of("sofa")}
    assert not found.of("the") and not found.of("lamp")
    assert found.of("couch")[0][1] > 0.3
    mixed = learn_synonyms(clicks.sample(fraction=1, shuffle=True, seed=1),
                           titles.reverse(), FEW_KINDS)  # fmt: skip
    assert mixed.frame.equals(found.frame)


def test_words_side_by_side_are_no_synonyms() -> None:
    """Without the rule the colours of a thing would be: they share its items."""
    clicks, titles = shop()
    loose = learn_synonyms(clicks, titles, SynonymLearning(most_together=1.0, largest_share=0.5))
    strict = learn_synonyms(clicks, titles, FEW_KINDS)
    assert "red" in {word for word, _ in loose.of("sofa")}
    assert strict.frame.height < loose.frame.height


def test_thin_evidence_is_none() -> None:
    clicks, titles = shop()
    assert learn_synonyms(clicks, titles, SynonymLearning(least_contexts=10_000)).frame.is_empty()
    with pytest.raises(UserError, match="no query led to an item"):
        learn_synonyms(clicks.clear(), titles)


@pytest.mark.skipif(not SHARED.exists(), reason="needs ../shared/data")
def test_a_real_shops_words() -> None:
    path = SHARED / "search" / "home_depot.csv.gz"
    judged = pl.read_csv(path, infer_schema_length=0).cast({"relevance": pl.Float64})
    clicks = judged.filter(pl.col("relevance") >= 2.5).select(
        query="search_term", item_id="product_uid", weight=pl.col("relevance") - 2
    )
    titles = judged.select(item_id="product_uid", title="product_title")
    found = learn_synonyms(clicks, titles.unique("item_id", maintain_order=True))
    assert found.of("fridge")[0][0] == "refrigerator"
    assert found.of("stove")[0][0] == "range"
