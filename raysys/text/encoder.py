"""A transformer that turns texts into unit vectors, with its lower layers frozen and run once.

Only the upper layers are fine-tuned, so what the lower ones make of a text never changes: it is
computed once (`Encoder.states`) and kept, and every training step, every fold and the final item
vectors begin from there. On a CPU that is the difference between minutes and an hour.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from raysys.errors import UserError
from raysys.text.compression.runtime import RuntimeBackbone
from raysys.text.half_weights import halve
from raysys.text.in_parts import in_parts
from raysys.text.models import layers_of, longest_input, open_model, readable

TOKENS_PER_BATCH = 4096
_PARTS = 4  # of a batch, by length

_STACKS = {
    "bert": "encoder",
    "camembert": "encoder",
    "distilbert": "transformer",
    "electra": "encoder",
    "mpnet": "encoder",
    "roberta": "encoder",
    "xlm-roberta": "encoder",
}
"""Families whose layers are a module that takes states and a mask and needs nothing else, so that
they can be run up to one and on from it: what the module is called."""


@dataclass(frozen=True)
class States:
    """What the frozen layers say of n texts, tokens one after the other.

    Attributes:
        tokens: float16[t, d] hidden states; or int64[t] token ids where no layer is frozen.
        starts: int64[n], where each text begins.
        lengths: int64[n], tokens of each text.
    """

    tokens: Tensor
    starts: Tensor
    lengths: Tensor

    def __len__(self) -> int:
        return len(self.lengths)

    def followed_by(self, more: States) -> States:
        """These texts, then others of the same encoder."""
        return States(
            torch.cat([self.tokens, more.tokens]),
            torch.cat([self.starts, more.starts + len(self.tokens)]),
            torch.cat([self.lengths, more.lengths]),
        )

    def padded(self, which: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
        """Some texts side by side: [m, longest, …] states and their bool[m, longest] mask."""
        lengths = self.lengths[which]
        place = torch.arange(int(lengths.max()))
        mask = place[None, :] < lengths[:, None]
        index = self.starts[which][:, None] + place[None, :].minimum(lengths[:, None] - 1)
        states = self.tokens[index].to(device)
        return (states.float() if states.is_floating_point() else states), mask.to(device)


class Upper(nn.Module):
    """The layers that are fine-tuned, then mean pooling: states to unit vectors.

    Args:
        transformer: the whole model.
        frozen: how many lower layers the states have already been through; 0: states are ids.
    """

    def __init__(self, transformer: nn.Module, frozen: int) -> None:
        super().__init__()
        self.frozen = frozen
        if frozen:
            stack: Any = copy.deepcopy(_stack(transformer))
            stack.layer = nn.ModuleList(list(stack.layer)[frozen:])
        else:
            stack = copy.deepcopy(transformer)
            if hasattr(stack, "pooler"):
                stack.pooler = None  # of no use to a mean, and its idle weights would stall DDP
            stack.config.use_cache = False  # of decoders: nothing is generated
        self.stack = stack

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        """Unit vectors float32[m, d] of m texts, see `States.padded`."""
        if self.frozen:
            blocked = torch.finfo(states.dtype).min
            attention = (~mask)[:, None, None, :].to(states.dtype) * blocked
            hidden = self.stack(states, attention_mask=attention)[0]
        else:
            hidden = self.stack(input_ids=states, attention_mask=mask.long())[0]
        weights = mask[:, :, None].to(hidden.dtype)
        mean = (hidden * weights).sum(1) / weights.sum(1).clamp(min=1)
        return nn.functional.normalize(mean.float(), dim=1)

    def by_length(self, states: Tensor, mask: Tensor, parts: int = 1) -> Tensor:
        """The same, those of like length together: padding is half of a batch of mixed ones.

        More than one part: with less memory, see `in_parts`.
        """
        lengths = mask.sum(1)
        order = torch.argsort(lengths, stable=True)
        found = []
        for which in order.chunk(_PARTS):
            longest = int(lengths[which[-1]])
            found.append(in_parts(self, parts, (states[which, :longest], mask[which, :longest])))
        return torch.cat(found)[torch.argsort(order)]


class Encoder:
    """Texts to unit vectors.

    Args:
        transformer: a Hugging Face encoder or decoder without a head.
        tokenizer: its fast tokenizer, with a padding token.
        max_tokens: what is read of each text; no more than the model has positions for.
        trainable_layers: how many upper layers are fine-tuned; -1: all, and the embeddings.

    Raises:
        UserError: layers are to be frozen in a model whose layers cannot be told apart.
    """

    def __init__(
        self, transformer: Any, tokenizer: Any, max_tokens: int, trainable_layers: int
    ) -> None:
        self.transformer = transformer.eval()  # without dropout: the same text, the same vector
        self.tokenizer = tokenizer
        self.max_tokens = min(max_tokens, longest_input(transformer) or max_tokens)
        self.trainable_layers = trainable_layers
        self.frozen = 0
        if trainable_layers >= 0:
            layers = layers_of(transformer, where="two_tower.trainable_layers")
            self.frozen = max(0, len(layers) - trainable_layers)
        kind = transformer.config.model_type
        if trainable_layers == 0 or (self.frozen and kind not in _STACKS):
            raise UserError(
                f"cannot train {trainable_layers} layers of a {type(transformer).__name__}",
                where="two_tower.trainable_layers",
                mend=f"take -1 (all layers), or from 1 on for {', '.join(_STACKS)}",
            )
        self.upper = Upper(transformer, self.frozen).eval()
        self.device = torch.device("cpu")

    def place(self, device: torch.device | str) -> None:
        """Run on a device from now on, where none is named.

        A compressed one stays on the CPU, unless it is PyTorch that runs it.
        """
        if isinstance(self.transformer, RuntimeBackbone):
            if self.transformer.settings.backend == "torch":
                self.device = torch.device(device)
            return
        self.device = torch.device(device)
        self.upper.to(self.device)
        if self.frozen:
            _trunk(self.transformer, self.frozen).to(self.device)

    def settle(self) -> None:
        """Nothing more is learned: read weights in half precision, see `half_weights.halve`."""
        if self.frozen:
            halve(self._lower)
        halve(self.upper)

    @classmethod
    def open(
        cls,
        model: str,
        max_tokens: int,
        trainable_layers: int | None,
        *,
        where: str = "two_tower.model",
    ) -> Encoder:
        """The packaged model, a folder, or a model of the hub; see `models.open_model`.

        Args:
            model: which.
            max_tokens: see `Encoder`.
            trainable_layers: see `Encoder`; None: it is read as it is, whatever its family.
            where: the setting that names the model.

        Raises:
            UserError: see `models.open_model`.
        """
        transformer, tokenizer = open_model(model, where=where)
        only_read = trainable_layers is None
        if trainable_layers is None:  # where layers can be told apart, no second copy of all
            trainable_layers = 1 if transformer.config.model_type in _STACKS else -1
        if isinstance(transformer, RuntimeBackbone):
            trainable_layers = -1  # it runs as a whole
        found = cls(transformer, tokenizer, max_tokens, trainable_layers)
        if only_read:
            found.settle()
        return found

    def save(self, folder: Path) -> None:
        """Write safetensors, configuration and tokenizer into a new folder, as `open` reads it."""
        if self.frozen:
            whole = layers_of(self.transformer)
            for at, layer in enumerate(self.upper.stack.layer):
                whole[self.frozen + at].load_state_dict(layer.state_dict())
        else:
            self.transformer.load_state_dict(self.upper.stack.state_dict(), strict=False)
        self.transformer.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    def tokens(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, with the model's marks of beginning and end; at least one."""
        if not len(texts):
            return []
        found = self.tokenizer(
            [readable(text, self.max_tokens) for text in texts],
            truncation=True,
            max_length=self.max_tokens,
            add_special_tokens=True,
            return_attention_mask=False,
        )
        ids: list[list[int]] = found["input_ids"]
        return [each or [self.tokenizer.pad_token_id] for each in ids]  # GPT marks nothing

    @torch.inference_mode()
    def states(self, texts: Sequence[str], device: torch.device | None = None) -> States:
        """Run the frozen layers over texts, those of like length together."""
        device = device or self.device
        ids = self.tokens(texts)
        lengths = torch.tensor([len(each) for each in ids], dtype=torch.int64)
        starts = torch.cumsum(lengths, 0) - lengths
        flat = torch.tensor([token for each in ids for token in each], dtype=torch.int64)
        plain = States(flat, starts, lengths)
        if not self.frozen:
            return plain
        trunk = _on(self._lower, device)
        width = self.transformer.config.hidden_size
        kept = torch.empty(len(flat), width, dtype=torch.float16)
        for which in _batches(lengths):
            padded, mask = plain.padded(which, device)
            with autocast(device):
                hidden = trunk(input_ids=padded, attention_mask=mask.long())[0]
            place = torch.arange(hidden.shape[1])
            index = starts[which][:, None] + place[None, :]
            kept[index[mask.cpu()]] = hidden[mask].to("cpu", torch.float16)
        _on(trunk, self.device)
        return States(kept, starts, lengths)

    @cached_property
    def _lower(self) -> Any:
        """The frozen layers; the weights are the transformer's."""
        return _trunk(self.transformer, self.frozen)

    @torch.inference_mode()
    def vectors(self, states: States, device: torch.device | None = None) -> Tensor:
        """Unit vectors float32[n, d] (on the CPU) of all texts of `states`."""
        device = device or self.device
        upper = _on(self.upper, device)
        out = torch.empty(len(states), self.transformer.config.hidden_size)
        for which in _batches(states.lengths):
            padded, mask = states.padded(which, device)
            with autocast(device):
                out[which] = upper(padded, mask).float().cpu()
        return out

    def encode(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Unit vectors float32[len(texts), d]; an empty text gets the vector of nothing, zeros."""
        found = np.zeros((len(texts), self.transformer.config.hidden_size), dtype=np.float32)
        lines = [" ".join(text.lower().split()) for text in texts]
        some = [at for at, line in enumerate(lines) if line]
        if some:
            found[some] = self.vectors(self.states([lines[at] for at in some])).numpy()
        return found


def _on(module: Any, device: torch.device) -> Any:
    """The module on a device; where it is there, without the walk over its parts that `to` is.

    Another runtime's has no parameters, and goes where its inputs are.
    """
    first = next(iter(module.parameters()), None)
    return module if first is None or first.device == device else module.to(device)


def _trunk(transformer: Any, frozen: int) -> Any:
    """The model up to its first `frozen` layers; shares its weights."""
    trunk = copy.copy(transformer)
    trunk._modules = dict(transformer._modules)
    if hasattr(trunk, "pooler"):
        trunk.pooler = None
    stack = copy.copy(_stack(transformer))
    stack._modules = dict(stack._modules)
    stack.layer = nn.ModuleList(list(stack.layer)[:frozen])
    setattr(trunk, _STACKS[transformer.config.model_type], stack)
    return trunk


def _stack(transformer: Any) -> Any:
    """The module that runs the layers; see `_STACKS`."""
    return getattr(transformer, _STACKS[transformer.config.model_type])


def _batches(lengths: Tensor) -> list[Tensor]:
    """Texts in order of length, cut so that a padded batch has about TOKENS_PER_BATCH tokens."""
    order = torch.argsort(lengths, stable=True, descending=True)
    batches, at = [], 0
    while at < len(order):
        size = max(1, TOKENS_PER_BATCH // int(lengths[order[at]]))
        batches.append(order[at : at + size])
        at += size
    return batches


def autocast(device: torch.device) -> torch.autocast:
    """bfloat16 where the hardware has it; where it is emulated it is several times slower."""
    fast = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        found = torch.cpu.get_capabilities()
        fast = bool(found.get("avx512_bf16") or found.get("amx_bf16"))
    return torch.autocast(device.type, torch.bfloat16, enabled=fast)


def exact(layer: nn.Linear, states: Tensor) -> Tensor:
    """A small head over states, float32[…, out], whatever autocast is on.

    In bfloat16 it would give three digits, and what is nearly alike would tie. FSDP may hold the
    weights in bfloat16 too.
    """
    bias = None if layer.bias is None else layer.bias.float()
    with torch.autocast(states.device.type, enabled=False):
        return nn.functional.linear(states.float(), layer.weight.float(), bias)
