"""A compressed backbone says what the whole one says, wherever it runs, and looks like it."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    DistilBertConfig,
    DistilBertModel,
    GPT2Config,
    GPT2Model,
    RobertaConfig,
    RobertaModel,
)

from raysys.errors import UserError
from raysys.text.compression.export import VARIANTS, export, variants_here, write_onnx
from raysys.text.compression.runtime import RUNTIME, is_compressed, open_compressed
from raysys.text.encoder import Encoder
from raysys.text.half_weights import halve
from raysys.text.models import open_model, open_with_head
from tests.text.tiny import write_tiny_bert

TEXTS = ["dairy milk", "frozen pizza, 12 g", "milk"]
CLOSE = {"fp32": 1e-4, "bf16": 0.1, "int8": 0.5}  # of hidden states, whose size is about 1


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_bert(tmp_path_factory.mktemp("model"), typed=True)


@pytest.fixture(scope="module")
def compressed(model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("compressed")
    backbone, tokenizer = open_model(str(model), where="model")
    write_onnx(backbone, root / "whole.onnx")
    return {
        name: export(backbone, tokenizer, name, root / name, onnx=root / "whole.onnx")
        for name in variants_here()
    }


def whole_for(variant: str, model: Path) -> tuple[Any, Any]:
    """The whole model and its tokenizer; read in halves where PyTorch reads the variant so."""
    whole, tokenizer = open_model(str(model), where="model")
    if variant == "torch_fp32":
        halve(whole)
    return whole, tokenizer


def test_every_variant_can_be_tried_where_tests_run() -> None:
    assert variants_here() == list(VARIANTS)


@pytest.mark.long
@pytest.mark.parametrize("variant", VARIANTS)
def test_hidden_states_are_those_of_the_whole_model(
    variant: str, model: Path, compressed: dict[str, Path]
) -> None:
    whole, tokenizer = whole_for(variant, model)
    backbone, _ = open_model(str(compressed[variant]), where="model")
    for texts in (TEXTS, TEXTS[:1]):  # other numbers of texts and tokens than were exported
        given = tokenizer(texts, padding=True, return_tensors="pt")
        given = {name: given[name] for name in ("input_ids", "attention_mask")}
        with torch.inference_mode():
            wanted = whole(**given).last_hidden_state
        found = backbone(**given).last_hidden_state
        assert found.dtype == torch.float32
        real = given["attention_mask"].bool()
        assert (found - wanted)[real].abs().max() < CLOSE[VARIANTS[variant].precision]


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_two_texts_of_a_pair_are_told_apart(
    variant: str, model: Path, compressed: dict[str, Path]
) -> None:
    whole, tokenizer = whole_for(variant, model)
    backbone, _ = open_model(str(compressed[variant]), where="model")
    given = tokenizer(TEXTS, TEXTS[::-1], padding=True, return_tensors="pt")
    assert given["token_type_ids"].any()
    alike = {**given, "token_type_ids": torch.zeros_like(given["input_ids"])}
    real = given["attention_mask"].bool()
    with torch.inference_mode():
        wanted, other = (whole(**each).last_hidden_state for each in (given, alike))
    close = CLOSE[VARIANTS[variant].precision]
    assert (wanted - other)[real].abs().max() > 2 * close
    assert (backbone(**given).last_hidden_state - wanted)[real].abs().max() < close
    assert (backbone(**alike).last_hidden_state - other)[real].abs().max() < close


@pytest.mark.parametrize("variant", VARIANTS)
def test_an_encoder_runs_on_it_and_saves_it(
    variant: str, model: Path, compressed: dict[str, Path], tmp_path: Path
) -> None:
    whole = Encoder.open(str(model), 16, 1).encode([*TEXTS, ""])
    encoder = Encoder.open(str(compressed[variant]), 16, 1)  # the bundle's settings say 1 layer
    found = encoder.encode([*TEXTS, ""])
    assert (found * whole).sum(1)[:3] == pytest.approx(1, abs=0.02)
    assert not found[3].any()
    encoder.save(tmp_path / "again")
    again = Encoder.open(str(tmp_path / "again"), 16, 1)
    assert np.array_equal(again.encode([*TEXTS, ""]), found)


def test_int8_is_smaller_and_bf16_halves(compressed: dict[str, Path]) -> None:
    size = {name: _size(folder) for name, folder in compressed.items()}
    assert size["torch_bf16"] < 0.6 * size["torch_fp32"]
    onnx = {
        name: (compressed[name] / "model.onnx").stat().st_size for name in size if "onnx" in name
    }
    assert onnx["onnx_int8"] < onnx["onnx_fp32"]


@pytest.mark.slow  # three exports
@pytest.mark.parametrize(
    "other",
    [
        GPT2Model(GPT2Config(vocab_size=80, n_embd=32, n_layer=2, n_head=2, n_positions=64)),
        RobertaModel(
            RobertaConfig(
                vocab_size=80, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
                intermediate_size=32, max_position_embeddings=34, pad_token_id=0,
            )
        ),
        DistilBertModel(
            DistilBertConfig(vocab_size=80, dim=32, n_layers=2, n_heads=2, hidden_dim=32)
        ),
    ],
    ids=["gpt2", "roberta", "distilbert"],
)  # fmt: skip
def test_other_families_export_too(other: torch.nn.Module, model: Path, tmp_path: Path) -> None:
    _, tokenizer = open_model(str(model), where="model")
    before = copy.deepcopy(other.state_dict())
    backbone = open_compressed(export(other.eval(), tokenizer, "onnx_fp32", tmp_path))
    assert all(torch.equal(before[name], each) for name, each in other.state_dict().items())
    ids = torch.tensor([[2, 9, 11, 3], [2, 8, 3, 0]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
    with torch.inference_mode():
        wanted = other(input_ids=ids, attention_mask=mask)[0]
    found = backbone(input_ids=ids, attention_mask=mask)[0]
    assert (found - wanted)[mask.bool()].abs().max() < 1e-4


def test_what_is_compressed_cannot_be_trained(compressed: dict[str, Path]) -> None:
    folder = compressed["onnx_fp32"]
    assert is_compressed(folder)
    with pytest.raises(UserError, match="cannot be trained"):
        open_with_head("mlm", str(folder), where="model")
    backbone, _ = open_model(str(folder), where="model")
    with pytest.raises(UserError, match="the model that it was made of"):
        backbone.train()(torch.tensor([[2, 3]]))


def test_a_damaged_runtime_is_told_of(compressed: dict[str, Path], tmp_path: Path) -> None:
    backbone, tokenizer = open_model(str(compressed["torch_fp32"]), where="model")
    del backbone
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / RUNTIME).write_text(json.dumps({"backend": "tensorrt", "precision": "fp32"}))
    with pytest.raises(UserError, match="a damaged compressed model"):
        open_compressed(tmp_path)


def test_unknown_and_uninstalled_variants_are_named(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone, tokenizer = open_model(str(model), where="model")
    with pytest.raises(UserError, match="choose among torch_fp32"):
        export(backbone, tokenizer, "onnx_int4", tmp_path)
    monkeypatch.setattr("raysys.text.compression.export.find_spec", lambda name: None)
    assert variants_here() == ["torch_fp32", "torch_bf16"]
    with pytest.raises(UserError, match=r"onnx_int8 needs onnx, .*") as error:
        export(backbone, tokenizer, "onnx_int8", tmp_path)
    assert "raysys[compress]" in str(error.value)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())
