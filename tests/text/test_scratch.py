from __future__ import annotations

import csv
import gzip
import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from raysys.errors import UserError
from raysys.text.encoder import Encoder
from raysys.text.models import open_model, open_with_head
from raysys.text.scratch import ScratchSettings, make_model

DATA = Path(os.environ.get("RAYSYS_DATA") or Path(__file__).parents[3] / "shared" / "data")
REVIEWS = DATA / "reviews" / "chinese_shopping.csv.gz"
KINDS = ["wordpiece", "bpe", "unigram", "characters"]
TEXTS = [
    "whole milk 500 g, dairy", "skimmed milk 1 l", "rye bread, bakery", "milk bread", "Acme soap",
    "牛奶 250ml 纯牛奶", "全脂牛奶,口感很好", "面包很好吃", "手工肥皂 Acme", "Käse aus Holland",
] * 4  # fmt: skip


def small(**changes: Any) -> ScratchSettings:
    return ScratchSettings.model_validate(
        {"layers": 2, "width": 16, "heads": 2, "vocabulary": 600, "max_tokens": 32, **changes}
    )


def chinese_reviews(most: int) -> Iterator[str]:
    if not REVIEWS.is_file():
        pytest.skip(f"no Chinese reviews: set RAYSYS_DATA (looked in {DATA})")
    with gzip.open(REVIEWS, "rt", encoding="utf-8", newline="") as lines:
        for at, row in enumerate(csv.DictReader(lines)):
            if at % 29 == 0:
                yield row["review"]
            if at >= 29 * most:
                return


def digest(folder: Path) -> str:
    files = sorted(folder.iterdir())
    return hashlib.sha256(b"".join(each.read_bytes() for each in files)).hexdigest()


@pytest.mark.parametrize("architecture", ["bert", "gpt2"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_made_opens_and_reads(architecture: str, kind: str, tmp_path: Path) -> None:
    made = make_model(small(architecture=architecture, tokenizer=kind), iter(TEXTS), 1, tmp_path)
    assert made.texts == 40 and made.characters == sum(map(len, TEXTS))
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".safetensors"}
    model, tokenizer = open_model(str(tmp_path), where="x")
    assert model.config.vocab_size == made.vocabulary == len(tokenizer) <= 600
    assert made.parameters == sum(each.numel() for each in model.parameters())
    for text in TEXTS:
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.unk_token_id not in ids
        read = tokenizer.decode(ids, skip_special_tokens=True)
        expected = text.lower().replace("ä", "a") if kind == "wordpiece" else text.lower()
        assert read.replace(" ", "") == expected.replace(" ", "")
    kind_of_head = "mlm" if architecture == "bert" else "clm"
    with_head, _ = open_with_head(kind_of_head, str(tmp_path), where="x")  # type: ignore[arg-type]
    batch = tokenizer(TEXTS[:3], padding=True, return_tensors="pt")
    assert with_head(**batch, labels=batch["input_ids"]).loss.isfinite()
    vectors = Encoder.open(str(tmp_path), 512, -1).encode([*TEXTS[:3], "", "x" * 100_000])
    assert vectors.shape == (5, 16) and not vectors[3].any()


def test_bert_marks_pairs(tmp_path: Path) -> None:
    make_model(small(), TEXTS, 1, tmp_path)
    _, tokenizer = open_model(str(tmp_path), where="x")
    pair = tokenizer("milk", "bread")
    tokens = tokenizer.convert_ids_to_tokens(pair["input_ids"])
    assert tokens == ["[CLS]", "milk", "[SEP]", "bread", "[SEP]"]
    assert pair["token_type_ids"] == [0, 0, 0, 1, 1]


def test_wordpiece_takes_chinese_sign_by_sign_and_words_by_their_parts(tmp_path: Path) -> None:
    make_model(small(), TEXTS, 1, tmp_path)
    _, tokenizer = open_model(str(tmp_path), where="x")
    tokens = tokenizer.tokenize("纯牛奶 Milk, soapbread")
    assert tokens[:6] == ["纯", "牛", "奶", "milk", ",", "soap"]
    assert len(tokens) > 6 and all(each.startswith("##") for each in tokens[6:])
    assert "".join(each[2:] for each in tokens[6:]) == "bread"
    offsets = tokenizer("纯牛奶 Milk", return_offsets_mapping=True)["offset_mapping"]
    assert offsets == [(0, 0), (0, 1), (1, 2), (2, 3), (4, 8), (0, 0)]


def test_case_may_count(tmp_path: Path) -> None:
    make_model(small(lower_case=False), TEXTS, 1, tmp_path)
    _, tokenizer = open_model(str(tmp_path), where="x")
    assert tokenizer.tokenize("Acme Käse") == ["Acme", "Käse"]


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
def test_the_same_in_every_process(kind: str, tmp_path: Path) -> None:
    make_model(small(tokenizer=kind), TEXTS, 1, tmp_path / "here")
    program = (
        "import sys; from pathlib import Path; from raysys.text.scratch import *; "
        "from tests.text.test_scratch import TEXTS, small; "
        f"make_model(small(tokenizer={kind!r}), TEXTS, 1, Path(sys.argv[1]))"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": str(Path.cwd())}
    subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "there")], check=True, env=environment
    )
    assert digest(tmp_path / "here") == digest(tmp_path / "there")


def test_the_seed_draws_the_weights_and_leaves_others_alone(tmp_path: Path) -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    for name, seed in (("a", 1), ("b", 2)):
        make_model(small(), TEXTS, seed, tmp_path / name)
    assert before.equal(torch.random.get_rng_state())
    a, b = ((tmp_path / name / "model.safetensors").read_bytes() for name in "ab")
    assert a != b
    a, b = ((tmp_path / name / "tokenizer.json").read_bytes() for name in "ab")
    assert a == b


@pytest.mark.parametrize("kind", KINDS)
def test_texts_of_every_kind(kind: str, tmp_path: Path) -> None:
    odd = ["", "   ", "a\ud800b", "a\x00b", "milk " * 20_000, "奶" * 100_000, "\u200b", "🦄🦄"]
    made = make_model(small(tokenizer=kind), [*TEXTS, *odd], 1, tmp_path)
    assert made.texts == 46  # two have no sign
    _, tokenizer = open_model(str(tmp_path), where="x")
    assert tokenizer.decode(tokenizer("milk")["input_ids"], skip_special_tokens=True) == "milk"


@pytest.mark.parametrize("kind", ["wordpiece", "characters"])
def test_a_small_vocabulary_keeps_the_commonest_signs(kind: str, tmp_path: Path) -> None:
    texts = [chr(0x4E00 + at % 500) + "奶" for at in range(5_000)]
    made = make_model(small(vocabulary=64, tokenizer=kind), texts, 1, tmp_path)
    _, tokenizer = open_model(str(tmp_path), where="x")
    assert made.vocabulary == len(tokenizer) <= 64
    assert tokenizer.unk_token_id not in tokenizer("奶")["input_ids"]
    assert tokenizer.unk_token_id in tokenizer(chr(0x4E00 + 499))["input_ids"]


def test_unigram_says_when_a_vocabulary_holds_not_every_sign(tmp_path: Path) -> None:
    texts = [chr(0x4E00 + at % 500) + "奶" for at in range(5_000)]
    with pytest.raises(UserError, match=r"64 does not hold the 50[01] signs"):
        make_model(small(vocabulary=64, tokenizer="unigram"), texts, 1, tmp_path)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("texts", [[], ["", "  "]])
def test_nothing_to_learn_from(kind: str, texts: list[str], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no text to train a tokenizer on"):
        make_model(small(tokenizer=kind), texts, 1, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"width": 30, "heads": 4}, "no multiple of heads"),
        ({"tokenizer": "bpe", "vocabulary": 300}, "512 or more for bpe"),
        ({"architecture": "t5"}, "architecture"),
        ({"vocabulary": 8}, "vocabulary"),
    ],
)
def test_settings_that_cannot_be(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        small(**changes)


@pytest.mark.parametrize("kind", KINDS)
def test_chinese_reviews_come_back_as_they_were(kind: str, tmp_path: Path) -> None:
    reviews = list(chinese_reviews(600))
    settings = small(tokenizer=kind, vocabulary=6_000, max_tokens=256)
    made = make_model(settings, iter(reviews), 1, tmp_path)
    assert made.texts == len(reviews) and made.vocabulary > 1_000
    _, tokenizer = open_model(str(tmp_path), where="x")
    signs = unknown = 0
    for review in reviews[:100]:
        ids = tokenizer(review)["input_ids"]
        signs += len(ids)
        unknown += ids.count(tokenizer.unk_token_id)
        read = tokenizer.decode(ids, skip_special_tokens=False)
        if tokenizer.unk_token_id not in ids:
            normal = tokenizer.backend_tokenizer.normalizer.normalize_str(review)
            for mark in ("[CLS]", "[SEP]"):
                read = read.replace(mark, "")
            assert "".join(read.split()) == "".join(normal.split())
    assert unknown <= 0.01 * signs
