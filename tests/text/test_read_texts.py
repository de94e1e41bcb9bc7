"""What encoders are given of texts and pairs: token types that they have, and never no token."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from raysys.learners.text_reader import Reader
from raysys.text.bi_encoder import BiEncoder, BiEncoding, Lesson, TextVectors, text_tokens
from raysys.text.compression.distil import HiddenStateDistillation
from raysys.text.cross_encoder import CrossEncoder, CrossEncoding, PairScorer, pair_tokens
from raysys.text.entity_network import EntityNetwork, Shape, Window, collate
from raysys.text.models import open_model
from raysys.text.pairs import Pairs, Scale
from raysys.text.pretraining.contrastive import VectorModel
from raysys.text.pretraining.tokens import Frame
from raysys.text.tags import Tags
from raysys.text.training import Objective
from tests.text.shop_pairs import judged_pairs
from tests.text.tiny import write_tiny_bert
from tests.text.tiny_language import write_causal

NOTHING = "\u200b"
"""No space to Python, and no token to a tokenizer that cleans its texts."""


@pytest.fixture(scope="module")
def gpt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_causal(tmp_path_factory.mktemp("gpt"))


def of_one_type(folder: Path) -> Path:
    """A BERT with one token type, whose tokenizer tells two apart."""
    write_tiny_bert(folder, layers=1, typed=True)
    config = BertConfig.from_pretrained(folder)
    config.type_vocab_size = 1
    BertModel(config).save_pretrained(folder)
    return folder


def cross(model: Path, pairs: Pairs) -> CrossEncoding:
    scale = Scale.of(pairs.grade, where="")
    return CrossEncoding(
        str(model), pairs, pairs, scale, loss="mse", max_tokens=32, list_size=4, temperature=0.3
    )


def bi(model: Path, pairs: Pairs) -> BiEncoding:
    lesson = Lesson("mse", 0.3, 0.0, 0.05, 0.5, 1.0, 0.0)
    scale = Scale.of(pairs.grade, where="")
    return BiEncoding(str(model), pairs, pairs, scale, lesson, max_tokens=32, list_size=4)


def finite_step(objective: Objective, rows: list[int]) -> None:
    module = objective.build()
    batch = objective.collate(np.array(rows), np.random.default_rng(0))
    loss = objective.loss(module, batch)
    loss.backward()  # type: ignore[no-untyped-call]
    found = [each.grad for each in module.parameters() if each.grad is not None]
    assert torch.isfinite(loss) and all(bool(torch.isfinite(each).all()) for each in found)


def test_a_cross_encoder_of_one_token_type_trains_and_scores(tmp_path: Path) -> None:
    model = of_one_type(tmp_path / "model")
    pairs = Pairs.of(judged_pairs(n_queries=3))
    objective = cross(model, pairs)
    finite_step(objective, [0, 1, 2])
    objective.save(objective.build(), tmp_path / "saved")
    scores, _ = PairScorer(tmp_path / "saved", 32).scores(pairs)
    assert np.isfinite(scores).all()
    typed = write_tiny_bert(tmp_path / "typed", layers=1, typed=True)
    kind = cross(typed, pairs).tokens.kind
    assert kind is not None and kind.any()  # of a model that has them they stay


def unreadable() -> Pairs:
    rows = [(NOTHING, NOTHING, 0.0), ("milk", NOTHING, 1.0), ("milk", "milk milk1", 2.0)]
    query, text, grade = zip(*rows, strict=True)
    return Pairs.of(pa.table({"query": query, "text": text, "grade": pa.array(grade)}))


def test_texts_of_no_token_have_vectors_and_scores(gpt: Path, tmp_path: Path) -> None:
    _, tokenizer = open_model(str(gpt), where="")
    pairs = unreadable()
    assert tokenizer(NOTHING)["input_ids"] == []
    assert text_tokens(tokenizer, [NOTHING, "milk"], 8).lengths.tolist() == [1, 1]
    assert pair_tokens(tokenizer, pairs, 8).lengths.tolist() == [1, 1, 3]
    for objective in (cross(gpt, pairs), bi(gpt, pairs)):
        finite_step(objective, [0, 1])
        with torch.no_grad():
            figures = objective.evaluate(objective.build().eval())
        assert figures and all(np.isfinite(x) for x in figures.values())
    encoding = bi(gpt, pairs)
    encoding.save(encoding.build(), tmp_path / "saved")
    assert np.isfinite(TextVectors(tmp_path / "saved", 8).encode([NOTHING, "milk"])).all()


def test_frames_and_students_read_texts_of_no_token(gpt: Path) -> None:
    teacher, tokenizer = open_model(str(gpt), where="")
    frame = Frame.of(tokenizer, teacher)
    batch = frame.batch([frame.one(np.empty(0, np.int32)), frame.one(np.array([3, 4], np.int32))])
    assert batch["attention_mask"].tolist() == [[1, 0], [1, 1]]
    assert torch.isfinite(VectorModel(teacher)(**batch)).all()
    texts = [NOTHING, "milk", "soap", f"{NOTHING}{NOTHING}"]
    objective = HiddenStateDistillation(teacher, tokenizer, 1, texts, held_out=0.25)
    finite_step(objective, [0, 1])
    with torch.no_grad():
        figures = objective.evaluate(objective.build())
    assert figures and all(np.isfinite(x) for x in figures.values())


def test_a_mean_over_nothing_is_no_nan(gpt: Path) -> None:
    backbone, _ = open_model(str(gpt), where="")
    ids, mask = torch.zeros(2, 3, dtype=torch.int64), torch.tensor([[True] * 3, [False] * 3])
    assert torch.isfinite(BiEncoder(backbone).embed(ids, mask)).all()
    assert torch.isfinite(VectorModel(backbone)(ids, mask.long())).all()


def test_heads_are_exact_where_the_rest_is_bfloat16(tmp_path: Path) -> None:
    backbone, _ = open_model(str(write_tiny_bert(tmp_path, layers=1)), where="")
    torch.manual_seed(0)
    ids, mask = torch.randint(4, 30, (40, 6)), torch.ones(40, 6, dtype=torch.int64)
    cross_encoder = CrossEncoder(backbone, 32).eval()
    reader = Reader(backbone, 3, 0.1).eval()
    tagger = EntityNetwork(Shape(Tags(("a",), "bioes"), False, 8, 0.1), backbone).eval()
    units = collate([Window(0, 0, [[1, 2]] * 4, [5, 6, 7, 8], [0, 1, 2, 3])] * 40, 0)
    units["input_ids"] = ids[:, :4]
    cross_encoder.slope.data.zero_()  # the joint head alone
    heads: dict[nn.Linear, Callable[[], Tensor]] = {
        cross_encoder.joint: lambda: cross_encoder(mask, mask, input_ids=ids)[0],
        reader.head: lambda: reader(ids, mask),
        tagger.head: lambda: tagger(units)[0],
    }
    for head, run in heads.items():
        torch.nn.init.normal_(head.weight)
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            said = run()
        assert said.dtype == torch.float32
        rounded = said.bfloat16().float() == said  # all of what bfloat16 has multiplied
        assert float(rounded.float().mean()) < 0.1
