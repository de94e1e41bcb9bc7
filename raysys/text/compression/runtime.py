"""A backbone that runs elsewhere than in PyTorch, and looks like one that does.

A compressed folder holds `config.json`, the tokenizer, the weights and `runtime.json`, which says
who runs them. `open_model` gives a `RuntimeBackbone` for it, so whatever was built on the backbone
(towers, classifiers, taggers, cross-encoders) is served by ONNX Runtime or OpenVINO unchanged.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from raysys.config import Settings
from raysys.errors import UserError
from raysys.text.half_weights import halve

RUNTIME = "runtime.json"
ONNX = "model.onnx"

Backend = Literal["torch", "onnx", "openvino"]
Precision = Literal["fp32", "bf16", "int8"]


class RuntimeSettings(Settings):
    """What `runtime.json` says.

    Attributes:
        backend: who runs the weights.
        precision: what they, or the products with them, are kept in.
        hidden_size: width of the hidden states.
        max_tokens: that the model has positions for; null: as many as there are.
    """

    backend: Backend
    precision: Precision
    hidden_size: int = Field(ge=1)
    max_tokens: int | None = Field(None, ge=1)


def is_compressed(folder: Path) -> bool:
    """Whether a model's folder was written by `export`."""
    return (folder / RUNTIME).is_file()


def tells_parts_apart(config: Any) -> bool:
    """Whether a model reads token types: which of two texts read together a token is of."""
    return int(getattr(config, "type_vocab_size", None) or 0) > 1


class RuntimeBackbone(nn.Module):
    """Token ids to hidden states, by whatever `runtime.json` names; without gradients.

    Args:
        folder: as `export` wrote it; read at once, and again by `save_pretrained`.
        config: the model's own.
        settings: of `runtime.json`.

    Raises:
        UserError: the program that runs it is not installed; names the extra.
    """

    def __init__(self, folder: Path, config: Any, settings: RuntimeSettings) -> None:
        super().__init__()
        self.folder = folder
        self.config = config
        if settings.max_tokens is not None:  # where whoever reads texts looks
            config.max_position_embeddings = settings.max_tokens
        self.settings = settings
        open_with = {"torch": _open_torch, "onnx": _open_onnx, "openvino": _open_openvino}
        self._run = open_with[settings.backend](folder, settings)
        self.eval()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        **_: Any,
    ) -> Any:
        """As a Hugging Face model: an output whose `last_hidden_state` is float32[b, t, d].

        Token types are read where the model knows any; not given, all are 0.
        """
        from transformers.modeling_outputs import BaseModelOutput

        if self.training:
            raise UserError(
                "a compressed model cannot be trained",
                where=str(self.folder),
                mend="give the model that it was made of",
            )
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        if token_type_ids is None:
            token_type_ids = torch.zeros_like(input_ids)
        given = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "token_type_ids": token_type_ids,
        }
        with torch.autocast(input_ids.device.type, enabled=False):
            return BaseModelOutput(last_hidden_state=self._run(given))

    def __deepcopy__(self, memo: dict[int, Any]) -> RuntimeBackbone:
        """Itself: nothing of it is ever changed, and sessions cannot be copied."""
        return self

    def save_pretrained(self, folder: Path | str) -> None:
        """Copy its files; the name is that of Hugging Face models."""
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        for path in sorted(self.folder.iterdir()):
            if path.is_file() and path.resolve() != (target / path.name).resolve():
                shutil.copy2(path, target / path.name)


def open_compressed(folder: Path) -> RuntimeBackbone:
    """The backbone of a compressed folder.

    Raises:
        UserError: a damaged folder, or a program that is not installed.
    """
    from transformers import AutoConfig

    try:
        content = json.loads((folder / RUNTIME).read_text(encoding="utf-8"))
        settings = RuntimeSettings(**content)
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, TypeError) as error:
        raise UserError(
            f"a damaged compressed model: {str(error).splitlines()[0]}",
            where=str(folder),
            mend="compress the model again (`raysys compress`)",
        ) from None
    return RuntimeBackbone(folder, config, settings)


def _open_torch(folder: Path, settings: RuntimeSettings) -> Any:
    from transformers import AutoModel

    dtype = torch.bfloat16 if settings.precision == "bf16" else torch.float32
    model = AutoModel.from_pretrained(
        folder, dtype=dtype, local_files_only=True, use_safetensors=True, trust_remote_code=False
    ).eval()
    halve(model)
    names = ["input_ids", "attention_mask"]
    names += ["token_type_ids"] if tells_parts_apart(model.config) else []

    def run(given: dict[str, Tensor]) -> Tensor:
        with torch.inference_mode():
            model.to(given["input_ids"].device)
            found = model(**{name: given[name] for name in names})[0]
        return found.float().clone()  # a copy outside of inference mode may meet gradients

    return run


def _open_onnx(folder: Path, settings: RuntimeSettings) -> Any:
    try:
        import onnxruntime
    except ImportError:
        raise _not_installed("onnxruntime", folder) from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    there = onnxruntime.get_available_providers()
    wanted = [x for x in ("CUDAExecutionProvider", "CPUExecutionProvider") if x in there]
    session = onnxruntime.InferenceSession(str(folder / ONNX), options, providers=wanted)
    names = [each.name for each in session.get_inputs()]

    def run(given: dict[str, Tensor]) -> Tensor:
        found = session.run(None, {name: _array(given[name]) for name in names})[0]
        return torch.from_numpy(found).to(given["input_ids"].device)

    return run


def _open_openvino(folder: Path, settings: RuntimeSettings) -> Any:
    try:
        import openvino
    except ImportError:
        raise _not_installed("openvino", folder) from None
    core = openvino.Core()
    hint = {"fp32": "f32", "bf16": "bf16"}[settings.precision]
    model = core.compile_model(
        str(folder / ONNX),
        "CPU",
        {
            "INFERENCE_PRECISION_HINT": hint,
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "PERFORMANCE_HINT": "LATENCY",
        },
    )
    names = [each.get_any_name() for each in model.inputs]

    def run(given: dict[str, Tensor]) -> Tensor:
        request = model.create_infer_request()  # one a call: requests are not thread-safe
        found = request.infer({name: _array(given[name]) for name in names})[model.output(0)]
        return torch.from_numpy(np.array(found)).to(given["input_ids"].device)

    return run


def _array(ids: Tensor) -> Any:
    return ids.to("cpu", torch.int64).contiguous().numpy()


def _not_installed(package: str, folder: Path) -> UserError:
    return UserError(
        f"this model is run by {package}, which is not installed",
        where=str(folder),
        mend="pip install 'raysys[compress]'",
    )
