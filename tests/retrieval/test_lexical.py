from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raysys.retrieval.lexical import LexicalIndex, words

TEXTS = [
    "fluid milk white only, grocery",
    "milk chocolate bar, candy",
    "fluid milk white only, grocery",
    "dog foods dry, pet",
    "ice cream premium, frozen",
    "ice pops, frozen",
    "牛奶 250ml",
]


@pytest.fixture(scope="module")
def index() -> LexicalIndex:
    return LexicalIndex.build(TEXTS)


def first_text(index: LexicalIndex, query: str) -> str:
    row = index.find(query, 10).rows[0]
    return TEXTS[int(np.flatnonzero(index.row_of_item == row)[0])]


def test_equal_texts_share_a_row(index: LexicalIndex) -> None:
    assert index.row_of_item.tolist() == [0, 1, 0, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("query", "text"),
    [
        ("ice cream", "ice cream premium, frozen"),
        ("Ice CREAMS", "ice cream premium, frozen"),
        ("dog food", "dog foods dry, pet"),
        ("chocolate milk!", "milk chocolate bar, candy"),
        ("牛奶", "牛奶 250ml"),
        ("unknownword dog", "dog foods dry, pet"),
    ],
)
def test_finds_by_words(index: LexicalIndex, query: str, text: str) -> None:
    assert first_text(index, query) == text


@pytest.mark.parametrize("query", ["", "   ", "!!!", "zzzz", "🦄", "\x00", "_"])
def test_finds_nothing_without_a_known_word(index: LexicalIndex, query: str) -> None:
    assert len(index.find(query, 10)) == 0


def test_limit_cuts_the_tail(index: LexicalIndex) -> None:
    every = index.find("milk frozen dog", 10)
    assert len(every) == 5 and (np.diff(every.scores) <= 0).all()
    assert index.find("milk frozen dog", 2).rows.tolist() == every.rows[:2].tolist()


def test_a_huge_query_costs_no_more_than_its_first_words(index: LexicalIndex) -> None:
    long = index.find("milk " * 100_000 + "dog", 10)
    assert set(long.rows.tolist()) == {0, 1}


def test_survives_saving(index: LexicalIndex, tmp_path: Path) -> None:
    index.save(tmp_path)
    again = LexicalIndex.load(tmp_path)
    for query in ("milk", "ice cream dog", "nothing"):
        before, after = index.find(query, 5), again.find(query, 5)
        assert before.rows.tolist() == after.rows.tolist()
        assert before.scores.tolist() == after.scores.tolist()
    assert {path.suffix for path in tmp_path.rglob("*") if path.is_file()} == {".npy", ".json"}


@pytest.mark.parametrize("texts", [[], [""], ["", "!!"]])
def test_a_shop_without_words_finds_nothing(texts: list[str], tmp_path: Path) -> None:
    LexicalIndex.build(texts).save(tmp_path)
    index = LexicalIndex.load(tmp_path)
    assert len(index.find("milk", 5)) == 0 and len(index.row_of_item) == len(texts)


@given(st.text(max_size=200))
def test_any_text_can_be_asked(text: str) -> None:
    index = LexicalIndex.build([*TEXTS, text])
    found = index.find(text, 100)
    own = index.row_of_item[len(TEXTS)]
    assert bool(words(text)) == (int(own) in found.rows.tolist())
    assert np.isfinite(found.scores).all()


def test_plurals_meet_their_singular() -> None:
    assert words("berries boxes cookies glasses bus") == words("berry boxe cookie glasse bus")


def test_searching_takes_nothing_of_a_gpu_where_jax_is_installed(tmp_path: Path) -> None:
    """jax takes most of a GPU's memory when it first computes, and bm25s lets it at its import."""
    (tmp_path / "jax").mkdir()
    (tmp_path / "jax" / "__init__.py").write_text("from . import lax\n")
    (tmp_path / "jax" / "lax.py").write_text(
        "def top_k(values, k):\n    raise SystemExit('jax has the GPU now')\n"
    )
    code = (
        "import sys; from raysys.retrieval.lexical import LexicalIndex; import bm25s.selection\n"
        "assert not bm25s.selection.JAX_IS_AVAILABLE\n"
        "import jax.lax; print(jax.__file__)\n"  # who wants it has it still
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{Path(__file__).parents[2]}"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(tmp_path / "jax" / "__init__.py")
