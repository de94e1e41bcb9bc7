"""Frozen layers, rates by layer, dropout, adapters: on four architectures."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from raysys.errors import UserError
from raysys.text.training import TrainingSettings, train
from raysys.text.training.layers import layers_of, prepare
from raysys.text.training.optimiser import factor, groups
from tests.text.training.tasks import FindsWord, Marker, tiny

KINDS = ("bert", "roberta", "distilbert", "gpt2")
EMBEDDINGS = {"bert": "embeddings", "roberta": "embeddings", "distilbert": "embeddings",
              "gpt2": "wte"}  # fmt: skip


def rates(module: nn.Module, settings: TrainingSettings) -> dict[str, tuple[float, float]]:
    """Rate and weight decay of each trainable parameter by name."""
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    return {
        names[id(parameter)]: (group["lr"], group["weight_decay"])
        for group in groups(module, settings)
        for parameter in group["params"]
    }


@pytest.mark.parametrize("kind", KINDS)
def test_rates_fall_from_layer_to_layer(kind: str) -> None:
    module = Marker(tiny(kind, layers=3))
    settings = TrainingSettings(learning_rate=1.0, head_learning_rate=7.0, layer_decay=0.5)
    found = rates(module, settings)
    assert found.keys() == dict(module.named_parameters()).keys()
    layers = layers_of(module.backbone)
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    for at, layer in enumerate(layers):
        assert {found[names[id(each)]][0] for each in layer.parameters()} == {0.5 ** (2 - at)}
    for name, (rate, decay) in found.items():
        vector = dict(module.named_parameters())[name].ndim < 2
        assert decay == (0.0 if vector else settings.weight_decay)
        if name.startswith(f"backbone.{EMBEDDINGS[kind]}"):
            assert rate == 0.5**3
        if name.startswith("head"):
            assert rate == 7.0
        if "pooler" in name or "ln_f" in name:
            assert rate == 1.0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("upper", [0, 1, 2])
def test_lower_layers_stay(kind: str, upper: int) -> None:
    module = Marker(tiny(kind, layers=3))
    prepare(module, TrainingSettings(trainable_layers=upper))
    for at, layer in enumerate(layers_of(module.backbone)):
        assert {each.requires_grad for each in layer.parameters()} == {at >= 3 - upper}
    for name, parameter in module.named_parameters():
        if EMBEDDINGS[kind] in name:
            assert not parameter.requires_grad
        if name.startswith("head") or "pooler" in name or "ln_f" in name:
            assert parameter.requires_grad


def test_as_many_layers_as_there_are_means_all() -> None:
    module = Marker(tiny("bert", layers=3))
    prepare(module, TrainingSettings(trainable_layers=3))
    assert all(each.requires_grad for each in module.parameters())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("rate", "alike"), [(0.0, True), (0.5, False), (None, False)])
def test_dropout_as_configured(kind: str, rate: float | None, alike: bool) -> None:
    module = Marker(tiny(kind, dropout=0.3))
    prepare(module, TrainingSettings(dropout=rate))
    module.train()
    ids = torch.arange(1, 11)[None]
    once, twice = (module(ids, torch.ones_like(ids)) for _ in range(2))
    assert torch.equal(once, twice) == alike


def test_what_cannot_be_told_apart() -> None:
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 4))

    with pytest.raises(UserError, match="trainable_layers: the layers of a Sequential"):
        prepare(Flat(), TrainingSettings(trainable_layers=1))
    with pytest.raises(UserError, match="layer_decay: the layers of a Sequential"):
        groups(Flat(), TrainingSettings(layer_decay=0.9))
    with pytest.raises(UserError, match="cannot checkpoint gradients"):
        prepare(Flat(), TrainingSettings(gradient_checkpointing=True))


@pytest.mark.parametrize("kind", KINDS)
def test_adapters_are_merged(kind: str, tmp_path: Path) -> None:
    """Saved weights have the plain model's names, and give what the adapted model gave."""
    objective = FindsWord(kind=kind)
    settings = TrainingSettings(
        epochs=2, batch_size=8, learning_rate=1e-2, lora={"rank": 2, "alpha": 8}, precision="fp32"
    )
    fitted = train(objective, settings, tmp_path / "out", seed=1)
    torch.manual_seed(1)
    module: Any = objective.build()
    before = {name: each.clone() for name, each in module.state_dict().items()}
    module.load_state_dict(load_file(tmp_path / "out" / "model.safetensors"))
    module.eval()
    with torch.no_grad():
        assert objective.evaluate(module)["loss"] == pytest.approx(fitted.figures["loss"], abs=1e-5)
    changed = {
        name for name, each in module.state_dict().items() if not torch.equal(each, before[name])
    }
    layers = [name for name in changed if name.startswith("backbone")]
    parts = {"bert": ("query", "value"), "roberta": ("query", "value"),
             "distilbert": ("q_lin", "v_lin"), "gpt2": ("c_attn",)}[kind]  # fmt: skip
    assert len(layers) == len(parts) * 2
    assert all(any(part in name for part in parts) for name in layers)
    assert {"head.weight", "head.bias"} <= changed


def test_adapters_of_upper_layers_and_named_targets(tmp_path: Path) -> None:
    module = Marker(tiny("bert", layers=3))
    settings = TrainingSettings(lora={"target_modules": ("key", "dense")}, trainable_layers=1)
    prepare(module, settings)
    trained = [name for name, each in module.named_parameters() if each.requires_grad]
    assert all(name.startswith(("backbone.encoder.layer.2", "backbone.pooler", "head"))
               for name in trained)  # fmt: skip
    assert any("key.lora_A" in name for name in trained)


def test_targets_that_are_not_there() -> None:
    settings = TrainingSettings(lora={"target_modules": ("qery",)})
    with pytest.raises(UserError, match=r"no linear map 'qery'\n.*query, key, value, dense"):
        prepare(Marker(tiny("bert")), settings)


def test_nothing_left_to_train() -> None:
    module = Marker(tiny("distilbert"))
    for each in module.parameters():
        each.requires_grad_(False)
    from raysys.text.training.optimiser import adamw

    with pytest.raises(UserError, match="no weight is left"):
        adamw(module, TrainingSettings(), fused=True)


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
def test_schedules(schedule: str) -> None:
    settings = TrainingSettings(schedule=schedule, warm_up=0.1)
    found = [factor(settings, step, 100) for step in range(100)]
    assert found[:10] == pytest.approx([(at + 1) / 10 for at in range(10)])
    assert found[10] == 1.0
    middle = {"linear": 0.5, "cosine": 0.5, "constant": 1.0}[schedule]
    assert found[55] == pytest.approx(middle)
    end = {"linear": 1 / 90, "cosine": 0.0, "constant": 1.0}[schedule]
    assert found[99] == pytest.approx(end, abs=1e-3)
    assert all(a >= b for a, b in pairwise(found[10:]))
    assert [factor(TrainingSettings(warm_up=0), at, 2) for at in range(2)] == [1.0, 1.0]


@pytest.mark.slow
def test_compiled_layers_learn_the_same(tmp_path: Path) -> None:
    """Evaluations, dropout of the seed and what is saved go on as they did."""
    settings = TrainingSettings(epochs=2, batch_size=8, learning_rate=3e-3, dropout=0.0)
    train(FindsWord(), settings, tmp_path / "plain")
    fitted = train(FindsWord(), settings.model_copy(update={"compile": True}), tmp_path / "fused")
    assert fitted.steps == 10
    plain, fused = (load_file(tmp_path / name / "model.safetensors") for name in ("plain", "fused"))
    assert plain.keys() == fused.keys()
    assert max(float((plain[name] - fused[name]).abs().max()) for name in plain) < 1e-4


def test_what_fsdp_cuts_apart_is_not_compiled() -> None:
    with pytest.raises(ValueError, match="compile goes with strategy: ddp"):
        TrainingSettings(compile=True, strategy="fsdp")


def test_without_a_compiler_it_is_said_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(UserError, match="no compiler called") as caught:
        train(FindsWord(), TrainingSettings(compile=True), tmp_path / "out")
    assert caught.value.where == "compile" and "apt install g++" in caught.value.mend
