"""A student begins as some of its teacher's layers and comes closer to what it says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2Model

from raysys.errors import UserError
from raysys.text.compression.distil import HiddenStateDistillation, kept_layers, shallower
from raysys.text.models import layers_of, open_model
from raysys.text.training import TrainingSettings, train
from tests.text.tiny import write_tiny_bert

WORDS = ("milk", "pizza", "dairy", "frozen", "item", "g")
TEXTS = [f"{a} {b} {c}" for a in WORDS for b in WORDS for c in WORDS]


@pytest.mark.parametrize(("there", "wanted"), [(6, 3), (12, 5), (2, 1), (6, 5)])
def test_kept_layers_are_spread_and_end_with_the_last(there: int, wanted: int) -> None:
    kept = kept_layers(there, wanted)
    assert kept == sorted(set(kept)) and len(kept) == wanted
    assert kept[-1] == there - 1 and kept[0] >= 0
    gaps = [b - a for a, b in zip([-1, *kept], kept, strict=False)]
    assert max(gaps) - min(gaps) <= 1


def test_a_student_is_a_copy_that_leaves_its_teacher_alone(tmp_path: Path) -> None:
    teacher, _ = open_model(str(write_tiny_bert(tmp_path, layers=4)), where="model")
    student = shallower(teacher, 2)
    assert len(layers_of(student)) == 2 and len(layers_of(teacher)) == 4
    assert student.config.num_hidden_layers == 2 and teacher.config.num_hidden_layers == 4
    for at, kept in enumerate([1, 3]):
        mine, theirs = layers_of(student)[at], layers_of(teacher)[kept]
        for one, two in zip(mine.parameters(), theirs.parameters(), strict=True):
            assert torch.equal(one, two) and one is not two
    with pytest.raises(UserError, match="cannot keep 4 of 4 layers"):
        shallower(teacher, 4)


def test_decoders_lose_layers_too() -> None:
    teacher = GPT2Model(GPT2Config(vocab_size=50, n_embd=16, n_layer=3, n_head=2, n_positions=16))
    student = shallower(teacher.eval(), 1)
    ids = torch.arange(6)[None]
    assert student(input_ids=ids)[0].shape == (1, 6, 16)
    assert student.config.n_layer == 1


def test_teaching_brings_it_closer(tmp_path: Path) -> None:
    teacher, tokenizer = open_model(str(write_tiny_bert(tmp_path / "t", layers=4)), where="model")
    objective = HiddenStateDistillation(teacher, tokenizer, 1, TEXTS, max_tokens=8)
    before = objective.evaluate(objective.build().eval())
    settings = TrainingSettings(epochs=6, learning_rate=5e-3, batch_size=32, dropout=0)
    fitted = train(objective, settings, tmp_path / "student", seed=1)
    after = fitted.figures
    assert after["hidden_state_error"] < 0.5 * before["hidden_state_error"]
    assert after["cosine"] > before["cosine"]
    student, _ = open_model(str(tmp_path / "student"), where="model")
    assert len(layers_of(student)) == 1


def test_a_pupil_of_a_reader_of_pairs_is_taught_by_pairs(tmp_path: Path) -> None:
    folder = write_tiny_bert(tmp_path / "t", layers=4, typed=True)
    teacher, tokenizer = open_model(str(folder), where="model")
    pairs = [(f"{a} {b}", f"{b} {c}") for a in WORDS for b in WORDS for c in WORDS]
    objective = HiddenStateDistillation(teacher, tokenizer, 1, pairs, max_tokens=12)
    batch = objective.collate(np.arange(3), np.random.default_rng(0))
    assert batch["token_type_ids"].sum(1).tolist() == [3, 3, 3]  # two words and a mark
    before = objective.evaluate(objective.build().eval())
    settings = TrainingSettings(epochs=6, learning_rate=5e-3, batch_size=32, dropout=0)
    fitted = train(objective, settings, tmp_path / "student", seed=1)
    assert fitted.figures["hidden_state_error"] < 0.5 * before["hidden_state_error"]


def test_it_needs_texts(tmp_path: Path) -> None:
    teacher, tokenizer = open_model(str(write_tiny_bert(tmp_path)), where="model")
    with pytest.raises(UserError, match="1 distinct texts are too few"):
        HiddenStateDistillation(teacher, tokenizer, 1, ["milk", "milk", " "])
