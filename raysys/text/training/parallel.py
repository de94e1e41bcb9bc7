"""One worker or many: what they share (DDP the gradients, FSDP the weights too), and agree on."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from raysys.text.training.layers import layers_of

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """This worker among all of a run.

    Attributes:
        device: where it computes.
        rank: from 0; the first one writes.
        size: workers in all.
        sharded: whether each holds a part of the weights only (FSDP).
    """

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    rank: int = 0
    size: int = 1
    sharded: bool = False

    def wrap(self, module: nn.Module, bf16: bool) -> nn.Module:
        """The module that the loss calls: itself, in DDP, or sharded in place by FSDP2."""
        if self.size == 1:
            return module
        if self.sharded:
            return _sharded(module, self.device, self.size, bf16)
        ids = [self.device] if self.device.type == "cuda" else None
        # an objective need not use all of a model (a pooler, say), and then DDP would stall
        return nn.parallel.DistributedDataParallel(
            module, device_ids=ids, find_unused_parameters=True
        )

    @contextlib.contextmanager
    def accumulating(self, wrapped: nn.Module, last: bool) -> Iterator[None]:
        """Around a micro-batch: gradients cross to the other workers with the last one only."""
        if isinstance(wrapped, nn.parallel.DistributedDataParallel):
            with contextlib.nullcontext() if last else wrapped.no_sync():
                yield
            return
        if self.sharded and self.size > 1:
            wrapped.set_requires_gradient_sync(last)  # type: ignore[operator]
        yield

    def sum(self, tensor: Tensor) -> Tensor:
        """Over the workers, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def agree(self, value: T) -> T:
        """What the first worker says."""
        if self.size == 1:
            return value
        held = [value]
        dist.broadcast_object_list(held, src=0, device=self.device)
        return held[0]


def _sharded(module: nn.Module, device: torch.device, size: int, bf16: bool) -> nn.Module:
    """FSDP2: every layer by itself, then the rest of the transformer, then the rest."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    backbone: nn.Module = module.backbone  # type: ignore[assignment]
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    how: dict[str, Any] = {
        "mesh": init_device_mesh(device.type, (size,)),
        "mp_policy": policy if bf16 else MixedPrecisionPolicy(),
    }
    for layer in layers_of(backbone, "strategy"):
        fully_shard(layer, **how)
    if backbone is not module and not _tied(module, backbone):
        fully_shard(backbone, **how)
    fully_shard(module, **how)
    return module


def _tied(module: nn.Module, backbone: nn.Module) -> bool:
    """Whether a head outside the transformer shares its weights: one group must hold both."""
    inside = {id(each) for each in backbone.modules()}
    own = {id(each) for each in backbone.parameters()}
    return any(
        id(parameter) in own
        for part in module.modules()
        if id(part) not in inside
        for parameter in part.parameters(recurse=False)
    )


def settle(module: nn.Module) -> None:
    """After a forward pass alone FSDP may hold weights gathered: back to each worker's part."""
    for part in module.modules():
        if hasattr(part, "reshard"):
            part.reshard()  # type: ignore[operator]


def whole(tensor: Tensor) -> Tensor:
    """A copy on the CPU, of the parts of all workers together; every worker must call this."""
    found = tensor.detach()
    if isinstance(found, DTensor):
        found = found.full_tensor()
    return found.to("cpu", copy=True).contiguous()


def like(full: Tensor, model: Tensor) -> Tensor:
    """A whole tensor placed and cut as `model` is."""
    full = full.to(model.device)
    if isinstance(model, DTensor):
        return distribute_tensor(full, model.device_mesh, model.placements, src_data_rank=None)
    return full
