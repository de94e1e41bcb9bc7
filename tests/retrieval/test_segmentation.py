from __future__ import annotations

import csv
import gzip
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raysys.retrieval import segmentation
from raysys.retrieval.lexical import LexicalIndex, words

DATA = Path(os.environ.get("RAYSYS_DATA") or Path(__file__).parents[3] / "shared" / "data")
REVIEWS = DATA / "reviews" / "chinese_shopping.csv.gz"
TEXTS = [
    "面条包装很漂亮",
    "这家的面包很好吃",
    "手机包装盒",
    "手机壳 红色",
    "红色连衣裙",
    "纯牛奶 250ml",
]


@pytest.fixture
def without_jieba(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    segmentation._say_missing.cache_clear()
    monkeypatch.setattr(segmentation, "find_spec", lambda name: None)
    yield
    segmentation._say_missing.cache_clear()


def first(query: str) -> str:
    index = LexicalIndex.build(TEXTS)
    return TEXTS[int(index.find(query, 10).rows[0])]


@pytest.mark.parametrize(
    ("query", "text"),
    [
        ("面包", "这家的面包很好吃"),
        ("好吃面包", "这家的面包很好吃"),
        ("手机 壳", "手机壳 红色"),
        ("连衣裙 红色", "红色连衣裙"),
        ("衣裙", "红色连衣裙"),
        ("250ml牛奶", "纯牛奶 250ml"),
    ],
)
def test_chinese_words_are_found(query: str, text: str) -> None:
    assert first(query) == text


def test_signs_keep_what_words_would_lose() -> None:
    assert words("纯牛奶") == ["牛奶", "纯牛奶", "纯", "牛", "奶"]
    assert words("奶") == ["奶"] and first("奶") == "纯牛奶 250ml"


@pytest.mark.parametrize(
    ("text", "signs"), [("東京タワー", list("東京タワー")), ("우유 빵", ["우", "유", "빵"])]
)
def test_japanese_and_korean_are_read_by_signs(text: str, signs: list[str]) -> None:
    assert words(text) == signs


@given(st.text(alphabet="牛奶面包手机壳很好吃的,a 1", max_size=60))
def test_texts_are_found_by_themselves_and_runs_stay_whole(text: str) -> None:
    for run in segmentation.RUN.findall(text):
        assert "".join(segmentation.chinese_words(run)) == run
        assert set(run) <= set(segmentation.search_words(run))
    index = LexicalIndex.build([*TEXTS, text])
    found = index.find(text, 100).rows
    assert bool(words(text)) == (int(index.row_of_item[-1]) in found)


def test_a_run_without_end_is_cut_in_parts() -> None:
    assert "".join(segmentation.chinese_words("牛奶面包" * 5_000)) == "牛奶面包" * 5_000


def test_without_jieba_signs_are_words_and_it_is_said_once(
    without_jieba: None, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="raysys"):
        assert words("纯牛奶 Milk") == ["纯", "牛", "奶", "milk"]
        assert first("连衣裙") == "红色连衣裙"
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 1 and "raysys[chinese]" in said[0]


def test_an_index_with_words_serves_where_jieba_is_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    LexicalIndex.build(TEXTS).save(tmp_path)
    monkeypatch.setattr(segmentation, "find_spec", lambda name: None)
    found = LexicalIndex.load(tmp_path).find("连衣裙", 10)
    assert TEXTS[int(found.rows[0])] == "红色连衣裙"


@pytest.mark.long
def test_neither_reads_nor_writes_shared_places_nor_chatters(tmp_path: Path) -> None:
    planted = tmp_path / "jieba.cache"
    planted.write_bytes(b"not to be read")
    program = "from raysys.retrieval.lexical import words; print(words('纯牛奶'))"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": str(Path.cwd())},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == str(words("纯牛奶")) and not done.stderr
    assert planted.read_bytes() == b"not to be read" and len(list(tmp_path.iterdir())) == 1


def test_reviews_are_found_by_two_words() -> None:
    if not REVIEWS.is_file():
        pytest.skip(f"no Chinese reviews: set RAYSYS_DATA (looked in {DATA})")
    with gzip.open(REVIEWS, "rt", encoding="utf-8", newline="") as lines:
        every = [row["review"] for at, row in enumerate(csv.DictReader(lines)) if at % 50 == 0]
    index = LexicalIndex.build(every)
    asked = hits = by_signs = 0
    signs = LexicalIndex.build([" ".join(review) for review in every])  # no run to cut
    for query in ("酒店 早餐", "酒店早餐", "屏幕 键盘", "电池时间", "洗发水 味道", "水果 新鲜",
                  "衣服 质量", "蒙牛 牛奶", "苹果好吃", "散热 声音"):  # fmt: skip
        pair = query.split() if " " in query else [query[:-2], query[-2:]]
        both = {at for at, review in enumerate(every) if all(word in review for word in pair)}
        if not both:
            continue
        asked += 1
        rows = {int(index.row_of_item[at]) for at in both}
        hits += int(index.find(query, 1).rows[0]) in rows
        by_signs += int(signs.find(" ".join(query), 1).rows[0]) in rows
        assert rows <= set(index.find(query, len(every)).rows.tolist())
    assert asked >= 7 and hits >= 0.8 * asked and hits >= by_signs
