"""Low-rank adapters (LoRA, Hu et al. 2022) by PEFT; merged at the end, so that nobody needs PEFT.

The weights of the transformer stay as they are; beside some of its linear maps a product of two
narrow matrices is trained. A checkpoint holds these alone.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from raysys.errors import UserError, missing_extra
from raysys.text.training.layers import layers_of
from raysys.text.training.settings import LoraSettings

_USUAL = {"distilbert": ("q_lin", "v_lin")}
"""Targets of architectures that PEFT has no list for."""


def inject(backbone: nn.Module, settings: LoraSettings) -> Any:
    """Put adapters into the transformer, in place; of its weights only they stay trainable.

    Returns:
        PEFT's tuner, for `merge`.

    Raises:
        UserError: PEFT is missing, or there is no such linear map.
    """
    try:
        from peft import LoraConfig, LoraModel
    except ImportError:
        raise missing_extra("peft", "lora") from None
    from transformers.pytorch_utils import Conv1D

    targets = list(settings.target_modules) or _usual(backbone)
    named = _linear(backbone)
    unknown = [each for each in targets if each not in named]
    if unknown:
        raise UserError(
            f"a {type(backbone).__name__} has no linear map {unknown[0]!r}",
            where="lora.target_modules",
            mend=f"choose from: {', '.join(named)}",
        )
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=targets,
        fan_in_fan_out=any(isinstance(named[each], Conv1D) for each in targets),
    )
    return LoraModel(backbone, config, "default")


def merge(tuner: Any) -> None:
    """Add the adapters to the weights and take them out, in place."""
    tuner.merge_and_unload()


def _usual(backbone: nn.Module) -> list[str]:
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as KNOWN

    kind = getattr(getattr(backbone, "config", None), "model_type", "")
    found = _USUAL.get(kind) or KNOWN.get(kind)
    if isinstance(found, list | tuple):
        return list(found)
    raise UserError(
        f"no usual targets of adapters are known for the architecture {kind!r}",
        where="lora.target_modules",
        mend=f"choose from: {', '.join(_linear(backbone))}",
    )


def _linear(backbone: nn.Module) -> dict[str, nn.Module]:
    """The linear maps of a layer by the last part of their names."""
    from transformers.pytorch_utils import Conv1D

    layer = layers_of(backbone, "lora")[0]
    found = {}
    for path, module in layer.named_modules():
        if isinstance(module, nn.Linear | Conv1D):
            found[path.rpartition(".")[2]] = module
    return found
