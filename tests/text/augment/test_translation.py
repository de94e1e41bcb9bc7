"""Real Marian models, made on the spot, run by the code that would run opus-mt."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from raysys.errors import UserError
from raysys.text.augment import Augmentation, augment_texts
from raysys.text.augment.settings import BackTranslation
from raysys.text.augment.translation import Translator, back_translated
from tests.text.augment.tiny_marian import write_tiny_marians

TEXTS = ["red couch", "green rug", "blue lamp", "red couch", "blue rug"]
HOME = ["red sofa", "green carpet", "blue light", "red sofa", "blue carpet"]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Models this small lose time by sharing it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_tiny_marians(tmp_path_factory.mktemp("marian"))


def settings(pair: tuple[Path, Path], **more: Any) -> BackTranslation:
    return BackTranslation(there=str(pair[0]), back=str(pair[1]), device="cpu", **more)


def translated(texts: list[str], how: BackTranslation, seed: int = 0, copy: int = 0) -> list[str]:
    return back_translated(pl.Series("text", texts), how, seed, copy).to_list()


@pytest.mark.long
@pytest.mark.parametrize("beams", [1, 4])
def test_what_comes_home_says_the_same_in_other_words(pair: tuple[Path, Path], beams: int) -> None:
    there = Translator.open(str(pair[0]), "cpu")
    assert there.translate(["red couch"], settings(pair), "", None) == ["rot kanape"]  # type: ignore[arg-type]
    assert translated(TEXTS, settings(pair, beams=beams, batch_size=2)) == HOME


def test_as_a_method_among_others(pair: tuple[Path, Path]) -> None:
    how = Augmentation(methods=(settings(pair),), copies=2)
    found = augment_texts(pl.Series(TEXTS), pl.Series(["a", "b", "c", "d", "e"]), how)
    assert found["text"].to_list() == HOME  # the second copy would say the same: it is left out
    assert set(found["augmented"]) == {"back_translation"}


def test_draws_differ_by_copy_and_belong_to_the_text(pair: tuple[Path, Path]) -> None:
    hot = settings(pair, beams=1, temperature=3.0, max_tokens=12)
    together = translated(TEXTS, hot)
    assert together == translated(TEXTS, hot)
    assert translated(TEXTS, hot, copy=1) != together
    assert translated(TEXTS, hot, seed=1) != together
    one_by_one = [translated([text], hot)[0] for text in reversed(TEXTS)]
    assert one_by_one == together[::-1]


def test_the_noise_draws_with_the_softmaxs_chances() -> None:
    from raysys.text.augment.draws import keys_of
    from raysys.text.augment.translation import _Drawn

    chances = torch.tensor([0.6, 0.3, 0.1])
    n = 20_000
    noisy = _Drawn(keys_of(np.arange(n), "test"), 1.0)(None, chances.log().repeat(n, 1))
    found = np.bincount(noisy.argmax(1).numpy(), minlength=3) / n
    np.testing.assert_allclose(found, chances.numpy(), atol=0.012)  # 3.5 standard errors


def test_translations_are_kept_by_text_and_pair(pair: tuple[Path, Path], tmp_path: Path) -> None:
    models = tmp_path / "models"
    for folder in pair:
        shutil.copytree(folder, models / folder.name)
    mine = (models / "there", models / "back")
    kept = settings(mine, cache=str(tmp_path / "cache"))
    assert translated(TEXTS[:2], kept) == HOME[:2]
    assert translated(TEXTS, kept) == HOME  # some known, some not
    files = sorted((tmp_path / "cache").rglob("*"))
    assert [file.suffix for file in files if file.is_file()] == [".parquet", ".parquet"]
    rows = pl.read_parquet([file for file in files if file.is_file()])
    assert dict(rows.rows()) == dict(zip(TEXTS, HOME, strict=True))
    from raysys.text.augment.translation import _opened

    _opened.cache_clear()
    shutil.rmtree(models)  # nothing but the cache can answer now
    assert translated(TEXTS, kept) == HOME
    with pytest.raises(UserError, match="no model folder"):
        translated(["green lamp"], kept)
    with pytest.raises(UserError, match="no model folder"):  # another pair, other translations
        translated(TEXTS, kept.model_copy(update={"there": str(models / "elsewhere")}))


def test_without_a_network_the_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    how = BackTranslation(there="somebody/opus-mt-en-xx", device="cpu")
    with pytest.raises(UserError, match="cannot open the translation model") as caught:
        translated(["red couch"], how)
    assert "hf download somebody/opus-mt-en-xx" in caught.value.mend


def test_folders_and_devices_that_are_not_there(pair: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="cannot open the translation model"):
        translated(["red couch"], BackTranslation(there=str(tmp_path), device="cpu"))
    with pytest.raises(UserError, match="no device 'gpu'"):
        translated(["red couch"], settings(pair).model_copy(update={"device": "gpu"}))
