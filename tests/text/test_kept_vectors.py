"""Vectors of texts are made once, whoever asks for which of them when."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raysys.text import kept_vectors as module
from raysys.text.kept_vectors import KeptVectors


class Lengths:
    """An encoder whose vector of a text is its length."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def encode(self, texts: Any) -> np.ndarray:
        self.asked += list(texts)
        return np.array([[len(text), 1.0] for text in texts], np.float32).reshape(-1, 2)


def kept(folder: Path) -> tuple[KeptVectors, Lengths]:
    encoder = Lengths()
    return KeptVectors(folder, lambda: encoder), encoder  # type: ignore[arg-type,return-value]


def texts(n: int, letter: str = "a") -> list[str]:
    return [letter * (number + 1) for number in range(n)]


def test_what_is_there_is_not_made_again_however_many_files_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TEXTS_A_FILE", 2)
    for more in (40, 40, 41):
        vectors, encoder = kept(tmp_path)
        found, fresh = vectors.of(texts(more))
        assert found[:, 0].tolist() == [float(n + 1) for n in range(more)]
        assert fresh == len(encoder.asked)
        assert len(list(tmp_path.glob("*.parquet"))) <= 2
    assert fresh == 1


def test_what_is_asked_for_no_more_goes_once_it_is_much(tmp_path: Path) -> None:
    kept(tmp_path)[0].of(texts(50))
    for _ in range(2):
        vectors, encoder = kept(tmp_path)
        vectors.of(texts(10))
        assert encoder.asked == []
    vectors, encoder = kept(tmp_path)
    vectors.of(texts(5, "b"))
    assert len(encoder.asked) == 5
    vectors, encoder = kept(tmp_path)
    vectors.of(texts(2, "b"))  # of 60 texts 58 are not asked for
    assert encoder.asked == []
    vectors, encoder = kept(tmp_path)
    vectors.of(texts(1))
    assert encoder.asked == ["a"]


def test_those_who_ask_at_once_wait_for_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TEXTS_A_FILE", 3)
    several = [kept(tmp_path) for _ in range(6)]
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda each: each[0].of(texts(60))[0], several))
    assert all((each == found[0]).all() for each in found)
    assert sum(len(encoder.asked) for _, encoder in several) == 60


def test_no_text_is_as_wide_as_the_model_makes_it(tmp_path: Path) -> None:
    vectors, _ = kept(tmp_path)
    assert vectors.of([])[0].shape == (0, 2)
