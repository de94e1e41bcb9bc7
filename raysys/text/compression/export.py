"""A trained backbone written for other runtimes: ONNX Runtime, OpenVINO, PyTorch in bfloat16."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import logging
import shutil
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from raysys.errors import UserError
from raysys.text.compression.runtime import (
    ONNX,
    RUNTIME,
    Backend,
    Precision,
    RuntimeSettings,
    tells_parts_apart,
)
from raysys.text.models import longest_input

OPSET = 18


@dataclass(frozen=True)
class Variant:
    """One way to run a backbone.

    Attributes:
        name: as YAML and tables know it.
        backend: who runs it.
        precision: of its weights (int8) or its products (bf16).
        needs: packages, all of the extra `compress`.
    """

    name: str
    backend: Backend
    precision: Precision
    needs: tuple[str, ...] = ()


_EXPORT = ("onnx", "onnxscript")
VARIANTS = {
    each.name: each
    for each in (
        Variant("torch_fp32", "torch", "fp32"),
        Variant("torch_bf16", "torch", "bf16"),
        Variant("onnx_fp32", "onnx", "fp32", (*_EXPORT, "onnxruntime")),
        Variant("onnx_int8", "onnx", "int8", (*_EXPORT, "onnxruntime")),
        Variant("openvino_fp32", "openvino", "fp32", (*_EXPORT, "openvino")),
        Variant("openvino_bf16", "openvino", "bf16", (*_EXPORT, "openvino")),
    )
}


def missing(variant: Variant) -> list[str]:
    """Packages that a variant needs and that are not installed."""
    return [name for name in variant.needs if find_spec(name) is None]


def variants_here() -> list[str]:
    """Names of the variants whose packages are installed."""
    return [name for name, variant in VARIANTS.items() if not missing(variant)]


def export(
    backbone: Any, tokenizer: Any, variant: str, folder: Path, *, onnx: Path | None = None
) -> Path:
    """Write a backbone as one of `VARIANTS` into a new or empty folder, for `open_compressed`.

    int8 weights are dynamic: activations are quantised as they come, each output channel of a
    weight has its own scale, and weights use 7 bits, since CPUs without VNNI add pairs of 8-bit
    products in 16 bits, which overflow (ONNX Runtime's `reduce_range`).

    Args:
        backbone: a Hugging Face model without head, float32.
        tokenizer: its tokenizer.
        variant: a name in `VARIANTS`.
        folder: where to.
        onnx: what `write_onnx` wrote of this very backbone, for several variants at once.

    Raises:
        UserError: no such variant, or its packages are not installed.
    """
    if variant not in VARIANTS:
        raise UserError(f"no variant {variant!r}", mend=f"choose among {', '.join(VARIANTS)}")
    chosen = VARIANTS[variant]
    if absent := missing(chosen):
        raise UserError(
            f"{variant} needs {', '.join(absent)}", mend="pip install 'raysys[compress]'"
        )
    folder.mkdir(parents=True, exist_ok=True)
    backbone = backbone.to("cpu").eval()
    tokenizer.save_pretrained(folder)
    if chosen.backend == "torch":
        dtype = torch.bfloat16 if chosen.precision == "bf16" else torch.float32
        copy.deepcopy(backbone).to(dtype).save_pretrained(folder)
    else:
        backbone.config.save_pretrained(folder)
        if onnx is None:
            write_onnx(backbone, folder / ONNX)
        else:
            shutil.copy2(onnx, folder / ONNX)
        if chosen.precision == "int8":
            _quantise(folder / ONNX)
    settings = RuntimeSettings(
        backend=chosen.backend,
        precision=chosen.precision,
        hidden_size=backbone.config.hidden_size,
        max_tokens=longest_input(backbone),
    )
    (folder / RUNTIME).write_text(json.dumps(settings.model_dump()) + "\n", encoding="utf-8")
    return folder


class _HiddenStates(nn.Module):
    """A backbone with one output, and no cache of keys where it is a decoder."""

    def __init__(self, backbone: Any) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> Tensor:
        given: dict[str, Any] = {"input_ids": input_ids, "attention_mask": attention_mask}
        if token_type_ids is not None:
            given["token_type_ids"] = token_type_ids
        if getattr(self.backbone.config, "use_cache", None) is not None:
            given["use_cache"] = False
        hidden: Tensor = self.backbone(**given)[0]
        return hidden


def write_onnx(backbone: Any, path: Path) -> None:
    """Write a backbone as one ONNX file for any number of texts of any length.

    Inputs `input_ids`, `attention_mask` and, where the model reads them, `token_type_ids`,
    int64[batch, tokens]; output `hidden`, float32[batch, tokens, d].
    """
    ids = torch.ones(2, 8, dtype=torch.int64)
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0  # without padding the exporter would leave the mask out
    given = {"input_ids": ids, "attention_mask": mask}
    if tells_parts_apart(backbone.config):
        kinds = torch.zeros_like(ids)
        kinds[:, 3:] = 1
        given["token_type_ids"] = kinds
    dims = {0: torch.export.Dim("batch"), 1: torch.export.Dim("tokens")}
    with _quiet():
        torch.onnx.export(
            _HiddenStates(backbone).eval(),
            tuple(given.values()),
            str(path),
            input_names=list(given),
            output_names=["hidden"],
            dynamic_shapes=dict.fromkeys(given, dims),
            opset_version=OPSET,
            dynamo=True,
            external_data=False,
        )


def _quantise(path: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    whole = path.with_suffix(".whole.onnx")
    path.rename(whole)
    with _quiet():
        quantize_dynamic(
            whole, path, weight_type=QuantType.QInt8, per_channel=True, reduce_range=True
        )
    whole.unlink()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's progress and its remarks about itself from the terminal."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
