from __future__ import annotations

import csv
import gzip
import os
from itertools import combinations
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from raysys.retrieval import segmentation
from raysys.text.augment.learned import SynonymLearning, learn_synonyms
from raysys.text.augment.settings import Augmentation
from raysys.text.augment.synonyms import Thesaurus
from raysys.text.augment.table import augment_texts
from raysys.text.augment.words import Words

DATA = Path(os.environ.get("RAYSYS_DATA") or Path(__file__).parents[4] / "shared" / "data")
REVIEWS = DATA / "reviews" / "chinese_shopping.csv.gz"
TEXTS = ["这件红色连衣裙很漂亮,质量不错", "纯牛奶250ml 很好喝", "iPhone手机壳很结实"]


def augmented(texts: list[str], *methods: dict[str, object], copies: int = 3) -> pl.DataFrame:
    settings = Augmentation.model_validate({"methods": list(methods), "copies": copies})
    return augment_texts(pl.Series(texts), np.arange(len(texts)), settings)


def test_words_are_those_of_the_search() -> None:
    words = Words.of(pl.Series(TEXTS))
    assert words.word.to_list()[:4] == ["这件", "红色", "连衣裙", "很漂亮"]
    assert words.texts().to_list() == TEXTS
    assert words.row.tolist() == sorted(words.row.tolist())


def test_japanese_stays_sign_by_sign() -> None:
    words = Words.of(pl.Series(["東京のパン", "东京面包"]))
    assert words.word.to_list() == [*"東京のパン", "东京", "面包"]


def test_dropout_leaves_out_words_not_signs() -> None:
    made = augmented(TEXTS[:1], {"kind": "word_dropout", "strength": 0.2})
    whole = Words.of(pl.Series(TEXTS[:1])).word.to_list()
    possible = {
        "".join(kept) for many in range(1, len(whole)) for kept in combinations(whole, many)
    }
    assert len(made) and set(made["text"]) <= possible


def test_swap_keeps_every_sign() -> None:
    made = augmented(TEXTS, {"kind": "word_swap", "strength": 0.3})
    assert len(made) >= 3
    for row, text in made.select("row", "text").iter_rows():
        assert sorted(text.replace(" ", "")) == sorted(TEXTS[row].replace(" ", ""))


def test_signs_slip_in_words_and_no_number_does() -> None:
    made = augmented(TEXTS, {"kind": "spelling_noise", "strength": 0.3}, copies=5)
    assert made["row"].n_unique() == 3
    for row, text in made.select("row", "text").iter_rows():
        assert text != TEXTS[row] and abs(len(text) - len(TEXTS[row])) <= 4
        assert "250ml" in text or row != 1


def test_a_thesaurus_replaces_chinese_words(tmp_path: Path) -> None:
    groups = tmp_path / "groups.txt"
    groups.write_text("连衣裙, 长裙, dress\n手机, 电话\n", encoding="utf-8")
    method = {"kind": "synonym_replacement", "strength": 0.5, "thesaurus": [str(groups)]}
    texts = set(augmented(TEXTS, method, copies=8)["text"])
    assert "iPhone电话壳很结实" in texts
    assert texts & {"这件红色长裙很漂亮,质量不错", "这件红色dress很漂亮,质量不错"}


SHOP = {
    f"i{at}": (f"{kind}{colour}新款", [f"{colour}{word}" for word in words])
    for at, (kind, colour, words) in enumerate(
        (kind, colour, words)
        for kind, words in (("沙发", ("沙发", "长椅")), ("冰箱", ("冰箱", "雪柜")))
        for colour in ("红色", "蓝色", "白色", "黑色", "绿色", "黄色")
    )
}


def learned() -> Thesaurus:
    clicks = [(query, item, 3.0) for item, (_, queries) in SHOP.items() for query in queries]
    return learn_synonyms(
        pl.DataFrame(clicks, schema=["query", "item_id", "weight"], orient="row"),
        pl.DataFrame([(item, title) for item, (title, _) in SHOP.items()],
                     schema=["item_id", "title"], orient="row"),
        SynonymLearning(least_contexts=2, largest_share=0.6, most_together=0.9),
    )  # fmt: skip


def test_synonyms_are_learned_from_chinese_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    found = learned()
    assert found.of("长椅")[0][0] == "沙发" and found.of("冰箱")[0][0] == "雪柜"
    monkeypatch.setattr(segmentation, "find_spec", lambda name: None)
    assert not len(learned())  # single signs have none


def test_reviews_are_changed_and_stay_chinese() -> None:
    if not REVIEWS.is_file():
        pytest.skip(f"no Chinese reviews: set RAYSYS_DATA (looked in {DATA})")
    with gzip.open(REVIEWS, "rt", encoding="utf-8", newline="") as lines:
        rows = [row["review"] for at, row in enumerate(csv.DictReader(lines)) if at % 500 == 0]
    kinds = ("word_dropout", "word_swap", "spelling_noise")
    made = augmented(rows, *({"kind": kind} for kind in kinds), copies=1)
    for kind in kinds:
        of_kind = made.filter(pl.col("augmented") == kind)
        assert len(of_kind) > 0.25 * len(rows)
        for row, text in of_kind.select("row", "text").iter_rows():
            assert text != rows[row] and set(text) <= {*rows[row], " "}
