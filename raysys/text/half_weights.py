"""Weights in half precision, for a model that is only read from: few texts take less time.

A short text, such as a query, is not limited by arithmetic: its time is that of reading all
weights from memory once. FBGEMM keeps them as float16 and computes in float32, so there is half as
much to read, and nothing else changes: of unit vectors, cosines differ by about 1e-6.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

LARGEST = 65504.0
"""Of float16; a layer with larger weights stays as it is."""


class HalfLinear(nn.Linear):
    """A linear layer that multiplies by its weights in float16 where nothing is learned.

    It is an `nn.Linear` in all else: its parameters are the float32 ones, gradients flow through
    them, and they are what is saved. On other devices, under autocast, and for other types than
    float32 it multiplies by them too. Copies, and what was changed or learned on, are packed anew.
    """

    _packed: tuple[tuple[int, ...], Any] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """float32[…, in] to float32[…, out]."""
        if torch.is_grad_enabled():
            self._packed = None  # what steps follow may not show: fused ones count no version
            return super().forward(x)
        if x.dtype != torch.float32 or x.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
            return super().forward(x)
        return cast(Tensor, torch.ops.quantized.linear_dynamic_fp16.default(x, self.packed()))

    def packed(self) -> Any:
        """The weights as FBGEMM reads them."""
        mark = (*_mark(self.weight), *_mark(self.bias))
        packed = self._packed
        if packed is None or packed[0] != mark:
            bias = None if self.bias is None else self.bias.detach()
            made = torch.ops.quantized.linear_prepack_fp16.default(self.weight.detach(), bias)
            self._packed = packed = mark, made
        return packed[1]

    def __getstate__(self) -> dict[str, Any]:
        """Without the packed weights: a copy's may change, and their count begin anew."""
        return {name: each for name, each in self.__dict__.items() if name != "_packed"}


def _mark(tensor: Tensor | None) -> tuple[int, ...]:
    """What changes where a tensor does, or is another."""
    if tensor is None:
        return ()
    return tensor.data_ptr(), -1 if tensor.is_inference() else tensor._version


def halve(module: nn.Module) -> None:
    """Have all linear layers of a module in eval mode read their weights in half precision.

    Nothing happens where this build of PyTorch cannot (CPUs other than x86), nor to layers whose
    weights float16 cannot hold, or that lie elsewhere than on the CPU.

    Args:
        module: changed in place; its state, and what it computes where it learns, stay the same.
    """
    if not _supported():
        return
    for each in module.modules():
        if type(each) is nn.Linear and _fits(each):
            each.__class__ = HalfLinear
            cast(HalfLinear, each).packed()


def _fits(layer: nn.Linear) -> bool:
    weight = layer.weight
    if weight.device.type != "cpu" or weight.dtype != torch.float32 or not weight.numel():
        return False
    return bool(weight.detach().abs().max() <= LARGEST)  # False for NaN as well


def _supported() -> bool:
    return torch.backends.quantized.engine in ("fbgemm", "x86")
