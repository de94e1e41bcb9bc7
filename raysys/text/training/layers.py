"""A transformer as a stack of layers: which are frozen, how fast each learns, its dropout.

Architectures name their stack differently (`encoder.layer`, `transformer.layer`, `h`, `layers`):
it is found as the list of as many like modules as the configuration has hidden layers.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from typing import Any

import torch
from torch import nn

from raysys.errors import UserError
from raysys.text.training.settings import TrainingSettings

_RATES = ("dropout", "attention_dropout", "activation_dropout", "hidden_dropout")
"""Attributes that hold a rate as a number, where a model calls the function, not the module."""


def layers_of(backbone: nn.Module, need: str = "") -> nn.ModuleList:
    """The stack of layers, lowest first; `need` names the setting that asks for it.

    Raises:
        UserError: the layers cannot be told apart.
    """
    wanted = getattr(getattr(backbone, "config", None), "num_hidden_layers", None)
    for module in backbone.modules():
        if isinstance(module, nn.ModuleList) and len({type(each) for each in module}) == 1:
            if len(module) == wanted:
                return module
            if wanted is None and len(module) > 1:
                return module
    raise UserError(
        f"the layers of a {type(backbone).__name__} cannot be told apart",
        where=need,
        mend="leave layer_decay at 1, trainable_layers at -1, strategy at ddp and compile at false",
    )


def depths(backbone: nn.Module, need: str = "") -> dict[int, int]:
    """How deep each parameter lies below the top layer (0), by `id`; what lies above it: -1.

    Embeddings, and whatever else comes before the layers, lie one below the lowest.
    """
    layers = layers_of(backbone, need)
    deep = {
        id(parameter): len(layers) - 1 - at
        for at, layer in enumerate(layers)
        for parameter in layer.parameters()
    }
    outside = len(layers)
    for parameter in backbone.parameters():  # in the order in which the model was put together
        if id(parameter) in deep:
            outside = -1
        else:
            deep[id(parameter)] = outside
    return deep


def freeze(backbone: nn.Module, trainable_layers: int) -> None:
    """Leave only the upper layers trainable, and what lies above them; -1: everything."""
    if trainable_layers < 0 or trainable_layers >= len(layers_of(backbone, "trainable_layers")):
        return
    deep = depths(backbone)
    for parameter in backbone.parameters():
        if deep[id(parameter)] >= trainable_layers:
            parameter.requires_grad_(False)


def set_dropout(backbone: nn.Module, rate: float) -> None:
    """Every dropout of the transformer at one rate, whether it is a module or a number."""
    for module in backbone.modules():
        if isinstance(module, nn.Dropout):
            module.p = rate
        for name in _RATES:
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, rate)


def compile_layers(backbone: nn.Module, device: torch.device) -> None:
    """Let each layer be compiled when it first runs; they share what comes of it.

    Layer by layer rather than as a whole: it takes seconds instead of minutes, and whatever calls
    the transformer (an objective's own methods, DDP, evaluations) runs the compiled layers.

    Raises:
        UserError: there is no compiler, or the layers cannot be told apart.
    """
    gpu = device.type == "cuda"
    mend = "leave compile at false"
    if gpu and importlib.util.find_spec("triton") is None:
        raise UserError("compiling for a GPU needs triton", where="compile", mend=mend)
    told = os.environ.get("CC" if gpu else "CXX")
    names = [told] if told else ["gcc", "clang", "cc"] if gpu else ["g++", "clang++", "c++"]
    if not any(map(shutil.which, names)):
        raise UserError(
            f"no compiler called {' or '.join(names)}",
            where="compile",
            mend=f"install one (Debian: apt install g++), or {mend}",
        )
    for layer in layers_of(backbone, "compile"):
        layer.compile()


def prepare(module: nn.Module, settings: TrainingSettings) -> Any:
    """Dropout, adapters, frozen layers and gradient checkpointing, in place.

    Returns:
        What `lora.merge` needs to put the adapters into the weights; None: there are none.

    Raises:
        UserError: the model cannot do what the settings ask.
    """
    from raysys.text.training import lora

    backbone: Any = module.backbone
    if settings.dropout is not None:
        set_dropout(backbone, settings.dropout)
    adapters = None if settings.lora is None else lora.inject(backbone, settings.lora)
    freeze(backbone, settings.trainable_layers)
    if settings.gradient_checkpointing:
        if not getattr(backbone, "supports_gradient_checkpointing", False):
            raise UserError(
                f"a {type(backbone).__name__} cannot checkpoint gradients",
                where="gradient_checkpointing",
                mend="take false, and a smaller micro_batch_size",
            )
        backbone.config.use_cache = False  # keys and values are of no use to training
        enable = getattr(backbone, "activation_checkpointing_enable", None)
        (enable or backbone.gradient_checkpointing_enable)({"use_reentrant": False})
        backbone.disable_input_require_grads()  # else gradients flow through frozen layers too
    return adapters
